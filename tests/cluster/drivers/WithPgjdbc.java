import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.util.Properties;
import java.util.concurrent.ThreadLocalRandom;

/**
 * An application with pgjdbc: for each way one row after the other.
 * usage: java -cp postgresql.jar WithPgjdbc.java WAY URL [WAY URL ...], with the password in PGPASSWORD
 */
public final class WithPgjdbc {
    private static final int PACE = 50;

    public static void main(String[] ways) throws Exception {
        for (int at = 0; at < ways.length; at += 2) {
            String way = ways[at], url = ways[at + 1];
            new Thread(() -> run(way, url)).start();
        }
        while (System.in.read() >= 0) {}
        // Nobody waits for a thread that waits for a host that is gone.
        Runtime.getRuntime().halt(0);
    }

    private static void run(String way, String url) {
        Properties properties = new Properties();
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        if (!way.contains("bare")) properties.setProperty("socketTimeout", "10");
        Connection connection = null;
        int failures = 0;
        // A number is used once: whether a write that failed was committed is not known.
        for (long n = 1; ; n++) {
            try {
                if (connection == null) connection = DriverManager.getConnection(url, properties);
                write(connection, way, n);
                tell(way, "wrote", Long.toString(n));
                failures = 0;
                sleep(PACE);
            } catch (SQLException error) {
                tell(way, "error", error.getSQLState() + ": " + error.getMessage());
                close(connection);
                connection = null;
                sleep(backoff(failures++));
            }
        }
    }

    private static void write(Connection connection, String way, long n) throws SQLException {
        String insert = "insert into driver_writes (way, n) values (?, ?)";
        try (PreparedStatement statement = connection.prepareStatement(insert)) {
            statement.setString(1, way);
            statement.setLong(2, n);
            statement.executeUpdate();
        }
    }

    private static void close(Connection connection) {
        try {
            if (connection != null) connection.close();
        } catch (SQLException alreadyGone) {
            // It is dropped in any case.
        }
    }

    /** Grows from 20 ms to half a second, and is not the same for everybody. */
    private static long backoff(int failures) {
        long most = Math.min(500, 20L << Math.min(failures, 5));
        return ThreadLocalRandom.current().nextLong(most / 2, most + 1);
    }

    private static void tell(String way, String what, String of) {
        System.out.println(way + "\t" + what + "\t" + of.replaceAll("\\s+", " "));
    }

    private static void sleep(long ms) {
        try {
            Thread.sleep(ms);
        } catch (InterruptedException nobodyDoes) {
            throw new IllegalStateException(nobodyDoes);
        }
    }
}
