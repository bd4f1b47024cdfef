import java.io.FileInputStream;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/**
 * Gets each URL of a list with a client certificate, and prints a line for each: what was served, or the exception.
 * Usage: java CertClient.java ca.pem certificate.p12 password url...
 */
public class CertClient {
    public static void main(String[] args) throws Exception {
        KeyStore roots = KeyStore.getInstance(KeyStore.getDefaultType());
        roots.load(null, null);
        try (FileInputStream pem = new FileInputStream(args[0])) {
            roots.setCertificateEntry("root", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(roots);
        KeyStore own = KeyStore.getInstance("PKCS12");
        try (FileInputStream p12 = new FileInputStream(args[1])) {
            own.load(p12, args[2].toCharArray());
        }
        KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(own, args[2].toCharArray());
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);

        System.out.println(Runtime.version());
        HttpClient client = HttpClient.newBuilder().sslContext(context).build();
        for (int i = 3; i < args.length; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[i])).timeout(Duration.ofSeconds(5)).build();
            try {
                System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
            } catch (IOException e) {
                System.out.println(e);
            }
        }
    }
}
