import java.io.FileInputStream;
import java.net.Socket;
import java.security.KeyStore;
import java.security.cert.CertPathBuilder;
import java.security.cert.CertPathValidatorException;
import java.security.cert.CertificateFactory;
import java.security.cert.PKIXBuilderParameters;
import java.security.cert.PKIXRevocationChecker;
import java.security.cert.X509CertSelector;
import java.util.EnumSet;
import javax.net.ssl.CertPathTrustManagerParameters;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/**
 * Connects to localhost at each port of a list, and prints a line for each: "connects", or why it did
 * not. Usage: java Client.java default|revocation ca.pem port...
 *
 * "default" trusts as the JDK does on its own, which asks for a staple (unless the property
 * jdk.tls.client.enableStatusRequestExtension is false) and does not look at it. "revocation" wants the
 * status of the leaf, from the staple or else from the responder that the certificate names.
 */
public class Client {
    public static void main(String[] args) throws Exception {
        KeyStore roots = KeyStore.getInstance(KeyStore.getDefaultType());
        roots.load(null, null);
        try (FileInputStream pem = new FileInputStream(args[1])) {
            for (var root : CertificateFactory.getInstance("X.509").generateCertificates(pem)) {
                roots.setCertificateEntry("root" + roots.size(), root);
            }
        }
        System.out.println(Runtime.version());
        for (int i = 2; i < args.length; i++) {
            // A context for each, so that no session is resumed.
            TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
            if (args[0].equals("revocation")) {
                PKIXBuilderParameters parameters = new PKIXBuilderParameters(roots, new X509CertSelector());
                var checker = (PKIXRevocationChecker) CertPathBuilder.getInstance("PKIX").getRevocationChecker();
                checker.setOptions(EnumSet.of(
                        PKIXRevocationChecker.Option.ONLY_END_ENTITY, PKIXRevocationChecker.Option.NO_FALLBACK));
                parameters.addCertPathChecker(checker);
                trust.init(new CertPathTrustManagerParameters(parameters));
            } else {
                trust.init(roots);
            }
            SSLContext context = SSLContext.getInstance("TLS");
            context.init(null, trust.getTrustManagers(), null);
            System.out.println(connect(context, Integer.parseInt(args[i])));
        }
    }

    static String connect(SSLContext context, int port) throws Exception {
        Socket tcp = new Socket("127.0.0.1", port);
        try (SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket(tcp, "localhost", port, true)) {
            SSLParameters parameters = socket.getSSLParameters();
            parameters.setEndpointIdentificationAlgorithm("HTTPS");
            socket.setSSLParameters(parameters);
            socket.startHandshake();
            return "connects";
        } catch (javax.net.ssl.SSLException e) {
            for (Throwable cause = e; cause != null; cause = cause.getCause()) {
                if (cause instanceof CertPathValidatorException invalid) {
                    boolean known = invalid.getReason() != CertPathValidatorException.BasicReason.UNSPECIFIED;
                    return "refused: " + (known ? invalid.getReason() : invalid.getMessage());
                }
            }
            return "refused: " + e.getMessage();
        }
    }
}
