package differential

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A memoryPipe is one direction of a connection. Writing does not wait for the reader,
// and what was written before Close can be read after it, so that what each side
// sees depends on nothing but what the other has sent.
type memoryPipe struct {
	mu     sync.Mutex
	more   sync.Cond
	data   []byte
	closed bool
}

type memoryConn struct{ in, out *memoryPipe }

func memoryConns() (a, b memoryConn) {
	x, y := new(memoryPipe), new(memoryPipe)
	x.more.L, y.more.L = &x.mu, &y.mu
	return memoryConn{x, y}, memoryConn{y, x}
}

func (c memoryConn) Read(p []byte) (int, error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	for len(c.in.data) == 0 {
		if c.in.closed {
			return 0, io.EOF
		}
		c.in.more.Wait()
	}
	n := copy(p, c.in.data)
	c.in.data = c.in.data[n:]
	return n, nil
}

func (c memoryConn) Write(p []byte) (int, error) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.data = append(c.out.data, p...)
	c.out.more.Signal()
	return len(p), nil
}

func (c memoryConn) Close() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.closed = true
	c.out.more.Signal()
	return nil
}

func (memoryConn) LocalAddr() net.Addr              { return new(net.TCPAddr) }
func (memoryConn) RemoteAddr() net.Addr             { return new(net.TCPAddr) }
func (memoryConn) SetDeadline(time.Time) error      { return nil }
func (memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (memoryConn) SetWriteDeadline(time.Time) error { return nil }

// A lastSession is a cache of one session, whatever server it is for.
type lastSession struct{ session *tls.ClientSessionState }

func (l *lastSession) Get(string) (*tls.ClientSessionState, bool) { return l.session, l.session != nil }
func (l *lastSession) Put(_ string, s *tls.ClientSessionState)    { l.session = s }

// A view is what one side knows of a connection in the end.
type view struct {
	Err                              string
	Complete, Resumed, ECH, Retry    bool
	Version, Suite                   uint16
	Curve                            tls.CurveID
	Protocol, ServerName, Peer, SCTs string
	Chains                           int
	Calls                            string // of the callbacks

	cs tls.ConnectionState
}

func newView(cs tls.ConnectionState, err error, p *party) view {
	v := view{
		Complete: cs.HandshakeComplete, Resumed: cs.DidResume, ECH: cs.ECHAccepted, Retry: cs.HelloRetryRequest,
		Version: cs.Version, Suite: cs.CipherSuite, Curve: cs.CurveID, Protocol: cs.NegotiatedProtocol, ServerName: cs.ServerName,
		SCTs: fmt.Sprintf("%x", cs.SignedCertificateTimestamps), Chains: len(cs.VerifiedChains), Calls: p.takeCalls(), cs: cs,
	}
	for _, c := range cs.PeerCertificates {
		v.Peer += fmt.Sprintf("%x ", sha256.Sum256(c.Raw))
	}
	if err != nil {
		v.Err = err.Error()
	}
	return v
}

// difference tells what is not the same in got.
func (v view) difference(got view) (text string) {
	compare := func(what string, want, got any) {
		if want != got {
			text += fmt.Sprintf("\n  %s: %v\n    wrapped: %v", what, want, got)
		}
	}
	compare("error", v.Err, got.Err)
	compare("complete", v.Complete, got.Complete)
	compare("resumed", v.Resumed, got.Resumed)
	compare("ECH accepted", v.ECH, got.ECH)
	compare("HelloRetryRequest", v.Retry, got.Retry)
	compare("version", v.Version, got.Version)
	compare("cipher suite", v.Suite, got.Suite)
	compare("curve", v.Curve, got.Curve)
	compare("protocol", v.Protocol, got.Protocol)
	compare("server name", v.ServerName, got.ServerName)
	compare("peer's chain", v.Peer, got.Peer)
	compare("verified chains", v.Chains, got.Chains)
	compare("timestamps", v.SCTs, got.SCTs)
	compare("callbacks", v.Calls, got.Calls)
	return text
}

// A meeting is one connection, as each side saw it.
type meeting struct{ client, server view }

func meet(client, server *party, config *tls.Config) meeting {
	a, b := memoryConns()
	c, s := tls.Client(a, config), tls.Server(b, server.config)
	done := make(chan error)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		if err == nil {
			if _, err = s.Read(make([]byte, 1)); err == io.EOF {
				err = nil
			}
		}
		s.Close()
		done <- err
	}()
	err := c.Handshake()
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1)) // takes the session ticket of TLS 1.3 as well
	}
	c.Close()
	serverErr := <-done
	return meeting{newView(c.ConnectionState(), err, client), newView(s.ConnectionState(), serverErr, server)}
}

func meetByQUIC(client, server *party, config *tls.Config, v *visit) meeting {
	parties := [2]*party{client, server}
	conns := [2]*tls.QUICConn{
		tls.QUICClient(&tls.QUICConfig{TLSConfig: config, EnableSessionEvents: v.events}),
		tls.QUICServer(&tls.QUICConfig{TLSConfig: server.config, EnableSessionEvents: v.events}),
	}
	var errs [2]error
	for i, c := range conns {
		defer c.Close()
		c.SetTransportParameters(nil)
		errs[i] = c.Start(context.Background())
	}
	for more := true; more; {
		more = false
		for i, c := range conns {
			if errs[i] != nil {
				continue
			}
			for e := c.NextEvent(); e.Kind != tls.QUICNoEvent; e = c.NextEvent() {
				more = true
				switch e.Kind {
				case tls.QUICErrorEvent:
					errs[i] = e.Err
				case tls.QUICWriteData:
					if errs[1-i] == nil {
						errs[1-i] = conns[1-i].HandleData(e.Level, e.Data)
					}
				case tls.QUICTransportParametersRequired:
					c.SetTransportParameters(nil)
				case tls.QUICStoreSession:
					errs[i] = c.StoreSession(e.SessionState)
				case tls.QUICHandshakeDone:
					if c == conns[1] {
						errs[i] = c.SendSessionTicket(tls.QUICSessionTicketOptions{EarlyData: v.early})
					}
				case tls.QUICRejectedEarlyData:
					parties[i].calls = append(parties[i].calls, "early data rejected")
				case tls.QUICSetReadSecret:
					if e.Level == tls.QUICEncryptionLevelEarly {
						parties[i].calls = append(parties[i].calls, "early data accepted")
					}
				}
			}
		}
	}
	return meeting{newView(conns[0].ConnectionState(), errs[0], client), newView(conns[1].ConnectionState(), errs[1], server)}
}
