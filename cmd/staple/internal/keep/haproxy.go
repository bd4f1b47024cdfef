package keep

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	socketFor   = 5 * time.Second // one command may take
	socketAgain = 5 * time.Second // after it failed
	maxReply    = 4 << 10
)

// A socket is that of HAProxy's runtime API, which is told of responses. One that fails is tried again, with the latest of
// each certificate.
type socket struct {
	network, address string
	log              *slog.Logger

	mu      sync.Mutex
	pending map[string]offer // by leaf
	news    chan struct{}
	failing bool
}

type offer struct {
	file string // of the response
	der  []byte
}

func newSocket(address string, log *slog.Logger) *socket {
	s := &socket{network: "tcp", address: address, log: log, pending: make(map[string]offer), news: make(chan struct{}, 1)}
	if strings.Contains(address, "/") || !strings.Contains(address, ":") {
		s.network = "unix"
	}
	return s
}

func (s *socket) add(key, file string, der []byte) {
	s.mu.Lock()
	s.pending[key] = offer{file, der}
	s.mu.Unlock()
	s.retry()
}

func (s *socket) retry() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// run tells HAProxy of what there is, until ctx ends.
func (s *socket) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.news:
		case <-timer.C:
		}
		if !s.flush(ctx) {
			timer.Reset(socketAgain)
		}
	}
}

// flush tells HAProxy of all that is pending. It reports whether HAProxy could be told, or has refused it.
func (s *socket) flush(ctx context.Context) (told bool) {
	for {
		s.mu.Lock()
		var key string
		var o offer
		for key, o = range s.pending {
			break
		}
		s.mu.Unlock()
		if o.der == nil {
			return true
		}
		reply, err := s.tell(ctx, o.der)
		if ctx.Err() != nil {
			return false
		}
		if err != nil {
			if !s.failing {
				s.log.Warn("HAProxy cannot be told of a response, which is tried again: see whether it runs, and its \"stats socket\" has \"level admin\"",
					"socket", s.address, "file", o.file, "error", err)
			}
			s.failing = true
			return false
		}
		if s.failing {
			s.failing = false
			s.log.Info("HAProxy can be told again", "socket", s.address)
		}
		switch {
		case strings.HasPrefix(reply, "OCSP Response updated"):
			s.log.Debug("HAProxy has the response", "file", o.file)
		case strings.Contains(reply, "does not match any certificate"):
			s.log.Warn("HAProxy had no response of this certificate when it loaded that, and takes none now: reload it", "file", o.file, "reply", reply)
		default:
			s.log.Warn("HAProxy refuses a response", "file", o.file, "reply", reply)
		}
		s.mu.Lock()
		if now := s.pending[key]; string(now.der) == string(o.der) {
			delete(s.pending, key)
		}
		s.mu.Unlock()
	}
}

// tell sends one command, and returns the reply.
func (s *socket) tell(ctx context.Context, der []byte) (reply string, err error) {
	ctx, cancel := context.WithTimeout(ctx, socketFor)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, s.network, s.address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err = fmt.Fprintf(conn, "set ssl ocsp-response <<\n%s\n\n", base64.StdEncoding.EncodeToString(der)); err != nil {
		return "", err
	}
	data, err := io.ReadAll(io.LimitReader(conn, maxReply))
	reply = strings.TrimSpace(string(data))
	switch {
	case err != nil:
		return "", err
	case reply == "":
		return "", errors.New("it closes the connection and says nothing")
	case strings.HasPrefix(reply, "Permission denied"), strings.HasPrefix(reply, "Unknown command"):
		return "", errors.New(reply)
	}
	return fmt.Sprintf("%.200s", reply), nil
}
