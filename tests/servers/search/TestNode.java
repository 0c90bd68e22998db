import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.List;
import org.opensearch.common.settings.Settings;
import org.opensearch.http.HttpServerTransport;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.transport.Netty4Plugin;

/**
 * A single OpenSearch node for tests (`fetch` makes an Elasticsearch node of it, by the packages' names), on loopback, on a free port or the one it is told.
 *
 * Usage: TestNode FOLDER PORT [SETTING=VALUE ...]. Prints "listening on PORT" once it answers. It ends when its standard input does,
 * so that it never outlives the test that started it, however that test ends.
 */
final class TestNode extends Node {
    private TestNode(Settings settings, Path folder) {
        super(
            InternalSettingsPreparer.prepareEnvironment(settings, Collections.emptyMap(), folder.resolve("config"), () -> "test"),
            List.of(Netty4Plugin.class),
            false
        );
    }

    public static void main(String[] arguments) throws Exception {
        Path folder = Path.of(arguments[0]).toAbsolutePath();
        Files.createDirectories(folder.resolve("config"));
        // A full disk of the machine is no business of a test.
        Settings.Builder settings = Settings.builder().put("cluster.routing.allocation.disk.threshold_enabled", false);
        for (String setting : List.of(arguments).subList(2, arguments.length)) {
            String[] pair = setting.split("=", 2);
            settings.put(pair[0], pair[1]);
        }
        settings.put("cluster.name", "lockstep-test")
            .put("path.home", folder.toString())
            .put("path.data", folder.resolve("data").toString())
            .put("path.logs", folder.resolve("logs").toString())
            .put("discovery.type", "single-node")
            .put("transport.type", "netty4")
            .put("http.type", "netty4")
            .put("network.host", "127.0.0.1")
            .put("transport.port", "0")
            .put("http.port", arguments[1]);
        TestNode node = new TestNode(settings.build(), folder);
        node.start();
        // After a restart its shards come back one after the other.
        node.client()
            .admin()
            .cluster()
            .prepareHealth()
            .setWaitForYellowStatus()
            .setWaitForNoInitializingShards(true)
            .setTimeout("120s")
            .get();
        HttpServerTransport http = node.injector().getInstance(HttpServerTransport.class);
        System.out.println("listening on " + http.boundAddress().publishAddress().getPort());
        while (System.in.read() >= 0) {
        }
        node.close();
        System.exit(0);
    }
}
