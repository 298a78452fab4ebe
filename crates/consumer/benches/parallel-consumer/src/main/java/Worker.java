// Confluent's parallel-consumer doing what the other workers of benches/runtime.rs do, with the same output:
// a line "idle" before it joins, "warm" and "done" with the records handled and the seconds since the first.
// It ends when its standard input does.

import static io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder.KEY;
import static org.apache.kafka.clients.consumer.ConsumerConfig.*;

import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import io.confluent.parallelconsumer.vertx.VertxParallelEoSStreamProcessor;
import io.vertx.core.Future;
import io.vertx.core.Promise;
import io.vertx.core.Vertx;
import io.vertx.ext.web.client.WebClient;
import java.io.IOException;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

public final class Worker {
    private static final double WARM_UP_SECONDS = 5;
    private static final double MEASURED_SECONDS = 10;

    private static final LongAdder handled = new LongAdder();

    public static void main(String[] arguments) throws Exception {
        String variant = arguments[0], broker = arguments[1], topic = arguments[2], group = arguments[3];
        long pauseMillis = Long.parseLong(arguments[4]);
        int inFlight = Integer.parseInt(arguments[5]);
        long records = Long.parseLong(arguments[6]);

        // A string as the key, because the queues of keys are found by equals() and no two arrays are equal.
        var consumer = new KafkaConsumer<>(
            Map.of(
                BOOTSTRAP_SERVERS_CONFIG, broker,
                GROUP_ID_CONFIG, group,
                ENABLE_AUTO_COMMIT_CONFIG, false,
                AUTO_OFFSET_RESET_CONFIG, "earliest"),
            new StringDeserializer(),
            new ByteArrayDeserializer());
        var options = ParallelConsumerOptions.<String, byte[]>builder()
            .ordering(KEY)
            .maxConcurrency(inFlight)
            .consumer(consumer)
            .build();
        System.out.println("idle");
        switch (variant) {
            case "core" -> core(options, topic, pauseMillis);
            case "vertx" -> vertx(options, topic, pauseMillis);
            default -> throw new IllegalArgumentException(variant);
        }
        report(records);
        untilInputEnds();
        System.exit(0);
    }

    /** A thread for each record that is being handled. */
    private static void core(
        ParallelConsumerOptions<String, byte[]> options, String topic, long pauseMillis) {
        var processor = ParallelStreamProcessor.createEosStreamProcessor(options);
        processor.subscribe(List.of(topic));
        processor.poll(record -> {
            if (pauseMillis > 0) {
                try {
                    Thread.sleep(pauseMillis);
                } catch (InterruptedException interrupted) {
                    throw new IllegalStateException(interrupted);
                }
            }
            handled.increment();
        });
    }

    /** Timers instead of threads. */
    private static void vertx(
        ParallelConsumerOptions<String, byte[]> options, String topic, long pauseMillis) {
        var vertx = Vertx.vertx();
        var client = WebClient.create(vertx);
        var processor = new VertxParallelEoSStreamProcessor<String, byte[]>(vertx, client, options);
        processor.subscribe(List.of(topic));
        processor.vertxFuture(record -> {
            if (pauseMillis == 0) {
                handled.increment();
                return Future.succeededFuture();
            }
            Promise<Void> done = Promise.promise();
            vertx.setTimer(pauseMillis, timer -> {
                handled.increment();
                done.complete();
            });
            return done.future();
        });
    }

    private static void report(long records) throws InterruptedException {
        while (handled.sum() == 0) {
            Thread.sleep(10);
        }
        long startedAt = System.nanoTime();
        double warm = print("warm", startedAt, WARM_UP_SECONDS, records / 4);
        print("done", startedAt, warm + MEASURED_SECONDS, records);
    }

    /** Prints the count when the time has passed or that many records are handled; returns the time. */
    private static double print(String word, long startedAt, double seconds, long recordsMax)
        throws InterruptedException {
        while (true) {
            double passed = (System.nanoTime() - startedAt) / 1e9;
            long count = handled.sum();
            if (passed >= seconds || count >= recordsMax) {
                System.out.println(word + " " + count + " " + passed);
                return passed;
            }
            Thread.sleep(10);
        }
    }

    private static void untilInputEnds() throws IOException {
        while (System.in.read() >= 0) {}
    }
}
