// Orders that break, or may break, a promise: what each would damage is shown first, and nothing is done without a typed word.

import { fill, h } from "./dom.js";
import { ask, post } from "./live.js";

/** A button that opens the dialog of an order. */
export function button(order) {
  return h("button", { type: "button", class: "order", "data-order": JSON.stringify(order), "aria-haspopup": "dialog" }, `${label(order)}…`);
}

/** What an order damages, or may damage, and why it would be refused. */
export function reservations(choice) {
  return [
    choice.refused ? h("p", { class: "refused" }, `The daemon would refuse it now: ${choice.refused}.`) : null,
    choice.harms.length
      ? h(
          "div",
          { class: "harms" },
          h("p", null, "It damages, or may damage:"),
          h("ul", null, choice.harms.map((harm) => h("li", null, harm.sentence, harm.keys.length ? h("ul", { class: "keys" }, harm.keys.map((key) => h("li", null, h("code", null, key)))) : null))),
        )
      : null,
  ];
}

/** Buttons inside `place` open their dialogs; `done` is called when one was carried out. */
export function listen(place, done) {
  place.addEventListener("click", (event) => {
    const pressed = event.target.closest("button[data-order]");
    if (pressed) open(JSON.parse(pressed.dataset.order), done);
  });
}

function label(order) {
  switch (order.kind) {
    case "resolve":
      return `${order.commit ? "Commit" : "Roll back"} the branch at ${order.participant} by hand`;
    case "skip":
      return `Give up its write at ${order.participant}`;
    case "forget":
      return `Take the damage of ${order.txid} at ${order.participant} off the record`;
    case "waive":
      return `Go on without the evidence of ${order.participant}`;
    default:
      return "Leave safe mode";
  }
}

function open(order, done) {
  const body = h("div", null, h("p", { role: "status" }, "The daemon is asked what this would do."));
  const dialog = h("dialog", { "aria-labelledby": "order-title" }, h("h2", { id: "order-title" }, label(order)), body);
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target.closest("[data-close]") && dialog.close());
  dialog.showModal();
  look(order, body, done, "");
}

async function look(order, body, done, complaint) {
  try {
    const session = await ask("session");
    const { plan, word, mark } = await ask(`plan?order=${encodeURIComponent(JSON.stringify(order))}`);
    // What was shown before belongs to another plan.
    body.replaceChildren();
    const shown = [complaint ? failure(complaint) : null, h("p", null, plan.effect), reservations(plan)];
    if (plan.refused) {
      fill(body, shown, buttons("Close"));
    } else {
      fill(body, shown, form(session, word, (given) => give(order, given, mark, body, done)));
    }
  } catch (error) {
    fill(body, failure(error.message), buttons("Close"));
  }
  (body.querySelector("input, button") ?? body).focus();
}

function form(session, word, give) {
  const name = h("input", { name: "operator", required: true, maxlength: 256, autocomplete: "username", spellcheck: "false" });
  name.value = session.operator ?? sessionStorage.getItem("operator") ?? "";
  name.readOnly = session.operator !== null;
  const form = h(
    "form",
    { novalidate: true },
    h("label", null, "Your name, kept in the log", name),
    h("label", null, "Why, kept in the log", h("textarea", { name: "reason", required: true, maxlength: 1000, rows: 2 })),
    h("label", null, h("span", null, "Type ", h("code", null, word), " to go on"), h("input", { name: "typed", required: true, autocomplete: "off", autocapitalize: "off", spellcheck: "false" })),
    h("div", { class: "answer", role: "alert" }),
    h("p", { class: "buttons" }, h("button", { type: "submit", class: "danger" }, "Do it"), h("button", { type: "button", "data-close": true }, "Cancel")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("operator", name.value);
    give({ form, operator: name.value, reason: form.elements.reason.value, typed: form.elements.typed.value });
  });
  return form;
}

async function give(order, { form, operator, reason, typed }, mark, body, done) {
  const answer = form.querySelector(".answer");
  const submit = form.querySelector("[type=submit]");
  submit.setAttribute("aria-disabled", "true");
  if (form.dataset.given) return;
  form.dataset.given = "1";
  let sent = false;
  try {
    const { token } = await ask("session");
    sent = true;
    const { message } = await post("order", token, { order, operator, reason, typed, plan: mark });
    fill(body, h("p", { class: "done", role: "status" }, `Done: ${message}.`), buttons("Close"));
    body.querySelector("button").focus();
    done();
  } catch (error) {
    if (error.conflict) return look(order, body, done, error.message);
    const unknown = sent && (error instanceof TypeError || error.broken) ? " Whether it was done is not known: look before you order it again." : "";
    fill(answer, h("p", null, `${sentence(error.message)}${unknown}`));
    form.elements.typed.focus();
  }
  delete form.dataset.given;
  submit.removeAttribute("aria-disabled");
}

function failure(message) {
  return h("div", { class: "answer", role: "alert" }, h("p", null, sentence(message)));
}

function buttons(label) {
  return h("p", { class: "buttons" }, h("button", { type: "button", "data-close": true }, label));
}

function sentence(message) {
  return `${message.charAt(0).toUpperCase()}${message.slice(1)}.`;
}
