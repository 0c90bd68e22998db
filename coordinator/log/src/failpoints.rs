//! Places where a test may stop the daemon dead: in builds with debug assertions, or with the feature `failpoints`. In any other they are
//! nothing at all.
//!
//! `LOCKSTEP_FAILPOINT=name:count:action` fires at the `count`th hit of `name` (from 1), once; several are separated by commas.
//! Actions: `kill` (SIGKILL to the own process), `pause` (SIGSTOP; go on with SIGCONT), `error` (only where the place can fail).

#[cfg(any(debug_assertions, feature = "failpoints"))]
pub use active::{fails, hit};

/// A place that was reached.
#[cfg(not(any(debug_assertions, feature = "failpoints")))]
#[inline(always)]
pub fn hit(_name: &str) {}

/// A place that was reached and that can fail: whether it shall.
#[cfg(not(any(debug_assertions, feature = "failpoints")))]
#[inline(always)]
pub fn fails(_name: &str) -> bool {
    false
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod active {
    use super::plan::{Action, Plan};
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::LazyLock;

    static PLAN: LazyLock<Plan> = LazyLock::new(|| {
        let text = std::env::var("LOCKSTEP_FAILPOINT").unwrap_or_default();
        Plan::parse(&text).unwrap_or_else(|sentence| panic!("LOCKSTEP_FAILPOINT: {sentence}"))
    });

    /// A place that was reached.
    pub fn hit(name: &str) {
        assert!(!fails(name), "failpoint {name} cannot fail: only kill and pause");
    }

    /// A place that was reached and that can fail: whether it shall.
    pub fn fails(name: &str) -> bool {
        let action = PLAN.reached(name);
        if let Some(action) = action {
            eprintln!("failpoint {name}: {action:?}");
        }
        match action {
            None => false,
            Some(Action::Error) => true,
            Some(Action::Kill) => {
                let _ = kill_process(getpid(), Signal::KILL);
                unreachable!("SIGKILL does not return");
            }
            Some(Action::Pause) => {
                let _ = kill_process(getpid(), Signal::STOP);
                // The signal may be taken by another thread: this one must not pass before all of them stand still.
                std::thread::sleep(std::time::Duration::from_millis(200));
                false
            }
        }
    }
}

#[cfg(any(test, debug_assertions, feature = "failpoints"))]
mod plan {
    use std::sync::atomic::{AtomicU64, Ordering};

    /// What shall happen where.
    #[derive(Debug)]
    pub struct Plan(Vec<Point>);

    #[derive(Debug)]
    struct Point {
        name: String,
        count: u64,
        action: Action,
        hits: AtomicU64,
    }

    /// What happens at a place.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Action {
        /// The process dies on the spot.
        Kill,
        /// The place fails.
        Error,
        /// The whole process stands still.
        Pause,
    }

    impl Plan {
        /// From `name:count:action,…`; empty is no plan.
        pub fn parse(text: &str) -> Result<Plan, String> {
            text.split(',').map(str::trim).filter(|point| !point.is_empty()).map(Point::parse).collect::<Result<_, _>>().map(Plan)
        }

        /// Counts a hit; the action of the point whose count it was.
        pub fn reached(&self, name: &str) -> Option<Action> {
            let mut action = None;
            for point in self.0.iter().filter(|point| point.name == name) {
                if point.hits.fetch_add(1, Ordering::Relaxed) + 1 == point.count {
                    action = Some(point.action);
                }
            }
            action
        }
    }

    impl Point {
        fn parse(text: &str) -> Result<Point, String> {
            let bad = |what: &str| format!("`{text}`: {what}; expected name:count:action, for example commit.after_force:3:kill");
            let mut parts = text.split(':');
            let (Some(name), Some(count), Some(action), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
                return Err(bad("not three parts"));
            };
            let count = count.parse().ok().filter(|count| *count > 0).ok_or_else(|| bad("the count is no number from 1"))?;
            let action = match action {
                "kill" => Action::Kill,
                "error" => Action::Error,
                "pause" => Action::Pause,
                _ => return Err(bad("the action is none of kill, error, pause")),
            };
            Ok(Point { name: name.to_string(), count, action, hits: AtomicU64::new(0) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::plan::{Action, Plan};

    #[test]
    fn a_point_fires_once_at_its_count() {
        let plan = Plan::parse("a:2:kill, b:1:error,a:3:pause").unwrap();
        assert_eq!([0; 4].map(|_| plan.reached("a")), [None, Some(Action::Kill), Some(Action::Pause), None]);
        assert_eq!([0; 2].map(|_| plan.reached("b")), [Some(Action::Error), None]);
        assert_eq!(plan.reached("c"), None);
    }

    #[test]
    fn nonsense_is_refused_in_a_sentence() {
        assert!(Plan::parse("").is_ok());
        for (text, what) in
            [("a", "three parts"), ("a:1:kill:x", "three parts"), ("a:0:kill", "count"), ("a:x:kill", "count"), ("a:1:die", "action")]
        {
            assert!(Plan::parse(text).unwrap_err().contains(what), "{text}");
        }
    }
}
