package whole

import (
	"context"
	"crypto/tls"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/world"
	"github.com/go-staple/staple/stapletest"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// taken is how long after a change of its files a certificate is taken, at most.
const taken = 7 * time.Second

// within makes a leaf valid from and until then, from now on.
func within(from, until time.Duration) func(*stapletest.LeafOptions) {
	return func(o *stapletest.LeafOptions) { o.NotBefore, o.NotAfter = time.Now().Add(from), time.Now().Add(until) }
}

func TestWhenASuccessorServes(t *testing.T) {
	var (
		hang = stapletest.Answer{Hang: true}
		down = stapletest.Answer{HTTPStatus: 500}
		gone = stapletest.Answer{Status: ocsp.Revoked}
	)
	type leaf = func(*stapletest.LeafOptions)
	for name, tt := range map[string]struct {
		old, next []leaf
		oldAnswer stapletest.Answer
		answer    stapletest.Answer
		later     *stapletest.Answer // about the successor, after half an hour; nil: as before
		laterOld  *stapletest.Answer
		after     time.Duration // its files have changed, at least, that it serves, and at most as long as it takes to notice more
		at        time.Duration // or just then
		never     bool          // within half an hour, that is
		then      time.Duration // since half an hour, if never; 0: not even in an hour
		stapled   bool
	}{
		"stapled at once":                     {stapled: true},
		"the responder is slow":               {answer: stapletest.Answer{Delay: 8 * time.Second}, after: 7 * time.Second, stapled: true},
		"the responder hangs":                 {answer: hang, after: 9 * time.Second},
		"the responder is down":               {answer: down},
		"there is no responder":               {next: []leaf{world.Responders()}},
		"it was issued before":                {next: []leaf{within(-300*world.Day, 30*world.Day)}, stapled: true},
		"the old one has expired":             {old: []leaf{within(-world.Day, 3*time.Minute)}, answer: hang},
		"the old one expires":                 {old: []leaf{within(-world.Day, 3*time.Minute+11*time.Second)}, answer: hang, at: 11 * time.Second},
		"the old one is revoked":              {oldAnswer: gone, answer: hang},
		"both are revoked":                    {oldAnswer: gone, answer: gone},
		"it is revoked":                       {answer: gone, never: true},
		"it is revoked, later too":            {answer: gone, never: true, laterOld: &stapletest.Answer{Status: ocsp.Good}},
		"it is revoked, and then the old one": {answer: gone, never: true, laterOld: &gone, then: time.Second},
		"it is Must-Staple":                   {next: []leaf{world.MustStaple}, stapled: true},
		"it is Must-Staple, not stapled":      {next: []leaf{world.MustStaple}, answer: down, never: true},
		"it is Must-Staple, stapled later": {next: []leaf{world.MustStaple}, answer: down, never: true, later: &stapletest.Answer{Status: ocsp.Good, Validity: world.Day},
			then: 10 * time.Minute, stapled: true},
		"both are Must-Staple, the old one stapled":     {old: []leaf{world.MustStaple}, next: []leaf{world.MustStaple}, answer: down, never: true},
		"both are Must-Staple, the old one not stapled": {old: []leaf{world.MustStaple}, oldAnswer: down, next: []leaf{world.MustStaple}, answer: down},
		"it is Must-Staple, the old one has expired":    {old: []leaf{within(-world.Day, 3*time.Minute)}, next: []leaf{world.MustStaple}, answer: hang},
		"it is Must-Staple, the old one revoked":        {oldAnswer: gone, next: []leaf{world.MustStaple}, answer: hang},
		"it is not valid yet":                           {next: []leaf{within(3*time.Minute+25*time.Second, world.Day)}, at: 25 * time.Second, stapled: true},
		"it is not valid yet, nor the old one any more": {old: []leaf{within(-world.Day, 3*time.Minute)}, next: []leaf{within(3*time.Minute+25*time.Second, world.Day)},
			at: 25 * time.Second, stapled: true},
		"it is not valid yet, and the responder hangs": {next: []leaf{within(3*time.Minute+25*time.Second, world.Day)}, answer: hang, at: 25 * time.Second},
		"it expires while it waits":                    {next: []leaf{within(-world.Day, 20*time.Minute), world.MustStaple}, answer: down, never: true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world.World) {
				old, next := w.Leaf(tt.old...), w.Leaf(tt.next...)
				w.Responder.Set(old.Leaf, tt.oldAnswer)
				w.Responder.Set(next.Leaf, tt.answer)
				m := mountOf(w)
				m.put(old)
				m.follow()
				time.Sleep(3 * time.Minute)
				m.serves(old)
				m.put(next)
				await := func(limit time.Duration) (after time.Duration, ok bool) {
					t.Helper()
					began := time.Now()
					for pause := 100 * time.Millisecond; time.Since(began) < limit; time.Sleep(pause) {
						if time.Since(began) > time.Minute {
							pause = 10 * time.Second
						}
						synctest.Wait()
						after := time.Since(began)
						cert := m.files.Certificate().TLS()
						if !next.Leaf.Equal(cert.Leaf) {
							m.serves(old)
							continue
						}
						m.serves(next)
						require.Equal(t, tt.stapled, len(cert.OCSPStaple) > 0)
						return after, true
					}
					return 0, false
				}
				after, ok := await(30 * time.Minute)
				require.Equal(t, !tt.never, ok)
				switch {
				case ok && tt.at > 0:
					require.Equal(t, tt.at, after)
					return
				case ok:
					require.LessOrEqual(t, after, tt.after+taken)
					require.GreaterOrEqual(t, after, tt.after)
					require.NoError(t, m.files.Reload(world.Soon(t)))
					return
				}
				if tt.later != nil {
					w.Responder.Set(next.Leaf, *tt.later)
				}
				if tt.laterOld != nil {
					w.Responder.Set(old.Leaf, *tt.laterOld)
					require.NoError(t, m.files.Certificate().Refresh(world.Soon(t)))
				}
				after, ok = await(time.Hour)
				require.Equal(t, tt.then > 0, ok)
				require.LessOrEqual(t, after, tt.then)
			})
		})
	}
}

func TestReloadSaysWhatKeepsASuccessorFromServing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		old := w.Leaf()
		m := newMount(w, old)
		require.NoError(t, m.files.Reload(world.Soon(t)), "nothing is new")
		next := w.Leaf()
		m.put(next)
		began := time.Now()
		require.NoError(t, m.files.Reload(world.Soon(t)))
		require.LessOrEqual(t, time.Since(began), 1100*time.Millisecond)
		m.serves(next)

		early := w.Leaf(within(40*world.Day, 90*world.Day))
		m.put(early)
		began = time.Now()
		err := m.files.Reload(world.Soon(t))
		require.ErrorContains(t, err, early.Leaf.NotBefore.UTC().Format(time.DateOnly))
		require.LessOrEqual(t, time.Since(began), 1100*time.Millisecond)
		m.serves(next)
		require.ErrorContains(t, m.files.Reload(world.Soon(t)), "not valid before", "again")

		revoked := w.Leaf()
		w.Responder.Set(revoked.Leaf, stapletest.Answer{Status: ocsp.Revoked})
		m.put(revoked)
		require.ErrorIs(t, m.files.Reload(world.Soon(t)), staple.ErrRevoked)
		m.serves(next)

		must := w.Leaf(world.MustStaple)
		w.Responder.Set(must.Leaf, stapletest.Answer{HTTPStatus: 500})
		m.put(must)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err = m.files.Reload(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, m.cert)
		require.ErrorContains(t, err, "500")
		m.serves(next)
		require.NoError(t, m.stapler.Wait(world.Soon(t)), "what does not serve is missed by nobody")
		reloaded := make(chan error, 1)
		go func() { reloaded <- m.files.Reload(t.Context()) }()
		time.Sleep(2 * time.Second)
		w.Responder.Set(must.Leaf, stapletest.Answer{})
		require.NoError(t, <-reloaded)
		m.serves(must)

		vain := w.Leaf(world.MustStaple, world.Responders())
		m.put(vain)
		require.ErrorIs(t, m.files.Reload(world.Soon(t)), staple.ErrNoResponder)
		m.serves(must)

		m.put(w.Leaf()) // which takes a second look
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, m.files.Reload(canceled), context.Canceled)
	})
}

func TestReloadsWithoutEndHoldUpNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		m := newMount(w, w.Leaf())
		next := w.Leaf()
		m.put(next)
		for range 20 {
			go m.files.Reload(t.Context())
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		m.serves(next)
	})
}

func TestSuccessorsThatAreSucceeded(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		first, second, third := w.Leaf(), w.Leaf(), w.Leaf()
		m := newMount(w, first)
		w.Responder.Set(second.Leaf, stapletest.Answer{Hang: true})
		m.put(second)
		time.Sleep(8 * time.Second)
		m.put(first) // was a mistake
		time.Sleep(time.Minute)
		m.serves(first)
		m.put(second)
		time.Sleep(8 * time.Second)
		m.serves(first)
		m.put(third)
		m.follows(third)
		time.Sleep(time.Minute)
		m.serves(third)
		m.put(first) // is back
		m.follows(first)
		var asked int
		for _, r := range w.Responder.Requests(second.Leaf) {
			require.False(t, r.Time.After(time.Now().Add(-time.Minute)))
			asked++
		}
		require.Positive(t, asked)
		require.Empty(t, m.trouble())
	})
}

// What a successor of a chain alone is, without a new leaf.
func TestAChainThatIsCompletedIsNotAskedAboutAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		cert := w.Leaf()
		m := newMount(w, cert)
		cert.Certificate = append(cert.Certificate, w.CA.Root.Raw)
		m.put(cert)
		m.follows(cert)
		require.Len(t, w.Responder.Requests(nil), 1)
	})
}

func TestSuccessorsTakeTheirPredecessorsPlaceInTheOrderOfAdd(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		leaf := func(names ...string) tls.Certificate { return w.Leaf(world.Names(names...)) }
		m := newMount(w, leaf("a.example", "shared.example"))
		second := mountOf(w)
		second.stapler = m.stapler
		second.put(leaf("b.example", "shared.example"))
		second.follow()
		third, err := m.stapler.Add(leaf("c.example", "shared.example"))
		require.NoError(t, err)
		config := m.stapler.TLSConfig(nil)
		served := func(name string, from *staple.Certificate) {
			t.Helper()
			got, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: name, SupportedVersions: []uint16{tls.VersionTLS13},
				SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}})
			require.NoError(t, err)
			require.Same(t, from.TLS(), got, name)
		}
		check := func() {
			t.Helper()
			synctest.Wait()
			served("", m.files.Certificate())
			served("shared.example", m.files.Certificate())
			served("b.example", second.files.Certificate())
			served("c.example", third)
			var listed []*staple.Certificate
			for c := range m.stapler.Certificates() {
				listed = append(listed, c)
			}
			require.Equal(t, []*staple.Certificate{m.files.Certificate(), second.files.Certificate(), third}, listed)
		}
		for i := range 6 {
			if i%3 != 1 {
				m.put(leaf("a.example", "shared.example"))
			}
			if i%3 != 0 {
				second.put(leaf("shared.example", "b.example"))
			}
			w.Responder.Set(nil, stapletest.Answer{Delay: 3 * time.Second})
			for range 15 {
				time.Sleep(time.Second)
				check()
			}
		}
		m.put(leaf("*.a.example", "shared.example"))
		time.Sleep(15 * time.Second)
		check()
		m.files.Remove()
		served("", second.files.Certificate())
		served("a.example", second.files.Certificate())
	})
}

// Whoever removes the handle gives up its place, and not the files.
func TestAHandleThatSomebodyRemoves(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		m := newMount(w, w.Leaf())
		m.files.Certificate().Remove()
		next := w.Leaf()
		m.put(next)
		m.follows(next)
		c := m.files.Certificate()
		m.stapler.TLSConfig(nil)
		c.Remove()
		next = w.Leaf()
		m.put(next)
		m.follows(next)
	})
}

func TestConfigurationsWithMethodsOfFilesFollow(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		cert := w.Leaf()
		m := newMount(w, cert)
		plain := &tls.Config{GetCertificate: m.files.GetCertificate}
		for name, config := range map[string]*tls.Config{"plain": plain, "wrapped": m.stapler.TLSConfig(plain), "nil": m.stapler.TLSConfig(nil)} {
			cert = w.Leaf()
			m.put(cert)
			time.Sleep(noticed)
			client, _, err := world.Connect(t, config, w.Client("www.example.com"))
			require.NoError(t, err, name)
			require.Equal(t, cert.Leaf.Raw, client.PeerCertificates[0].Raw, name)
			require.NotEmpty(t, client.OCSPResponse, name)
		}
		server := &tls.Config{ClientAuth: tls.RequireAnyClientCert, GetCertificate: m.files.GetCertificate}
		client := w.Client("www.example.com")
		client.GetClientCertificate = m.files.GetClientCertificate
		cert = w.Leaf()
		m.put(cert)
		time.Sleep(noticed)
		_, seen, err := world.Connect(t, server, client)
		require.NoError(t, err)
		require.Equal(t, cert.Leaf.Raw, seen.PeerCertificates[0].Raw)
	})
}

func TestACertificateThatIsNotValidYetWaitsForTheWallClock(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		set := world.SetClock(t)
		old, next := w.Leaf(world.LongLived), w.Leaf(within(20*world.Day, 100*world.Day))
		m := newMount(w, old)
		m.put(next)
		time.Sleep(time.Minute)
		m.serves(old)
		set(21 * world.Day)
		time.Sleep(30 * time.Second)
		m.serves(next)
		set(-21 * world.Day) // looks go on, whatever the clock says
		last := w.Leaf(world.LongLived)
		m.put(last)
		time.Sleep(noticed)
		m.serves(last)
	})
}

func TestAHelloWithoutAnyCertificateIsLoggedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world.World) {
		m := mountOf(w)
		bare, client := m.stapler.TLSConfig(nil), m.stapler.TLSConfig(&tls.Config{})
		callback := m.stapler.TLSConfig(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
		said := func() (n int) {
			for _, line := range m.trouble() {
				require.Equal(t, "WARN", line["level"])
				if strings.Contains(line["msg"].(string), "ListenAndServeTLS") {
					n++
				}
			}
			return n
		}
		require.Zero(t, said())
		for range 3 {
			_, _, err := world.Connect(t, bare, w.Client("www.example.com"))
			require.Error(t, err)
		}
		require.Equal(t, 1, said())
		_, _, err := world.Connect(t, client, w.Client("www.example.com"))
		require.Error(t, err)
		require.Equal(t, 1, said())
		_, _, err = world.Connect(t, callback, w.Client("nobody.example"))
		require.Error(t, err)
		require.Zero(t, said(), "a callback may know nobody of that name")

		// As http.Server.ServeTLS with file names does it.
		bypassed := m.stapler.TLSConfig(nil).Clone()
		bypassed.Certificates = []tls.Certificate{w.Leaf()}
		seen, _, err := world.Connect(t, bypassed, w.Client("www.example.com"))
		require.NoError(t, err)
		require.Empty(t, seen.OCSPResponse)
		require.Equal(t, 1, said())
		m.put(w.Leaf())
		m.follow()
		_, _, err = world.Connect(t, bypassed, w.Client("www.example.com"))
		require.NoError(t, err)
		require.Zero(t, said())
	})
}
