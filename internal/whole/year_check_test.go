package whole

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing/synctest"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/internal/mldsa"
	"github.com/go-staple/staple/internal/wall"
	"github.com/go-staple/staple/internal/world"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// A yearOracle is the part of a year that knows what must hold.
type yearOracle struct{ *year }

// wrong counts what must not happen, and shows the first few. y.mu is held.
func (y *yearOracle) wrong(n *int, what string, c *yearCert) {
	if *n++; *n > 5 {
		return
	}
	var faults string
	for _, f := range c.faults {
		faults += fmt.Sprintf("\n  %s since %s, for %s, status %d, Retry-After %s, delay %s", f.kind, f.from.Format(time.DateTime), f.length, f.status, f.wait, f.delay)
	}
	for i, s := range append(c.scopes(), &c.own) {
		faults += fmt.Sprintf("\n  %s: %d faults, since %s until %s, good %s, asked %s", []string{"host", "URL", "CA", "itself"}[i],
			s.faults, s.since.Format(time.DateTime), s.ended.Format(time.DateTime), s.good.Format(time.DateTime), s.asked.Format(time.DateTime))
	}
	_, until, why := y.deadline(c)
	y.T.Errorf("%s, clock %s, %s after the start of the process: certificate %s (%s) at %s: %s\nresponse: %s\nnewest given: %s\n"+
		"revoked %v, asked about %d times, in reach since %s, needed since %s, excused until %s for: %s%s",
		time.Now().Format(time.DateTime), wall.Now().Format(time.DateTime), time.Since(y.started), c.id, c.class.name, c.place.url, what, c.response, c.newest,
		c.revoked, c.asked, c.reach.Format(time.DateTime), y.need(c).Format(time.DateTime), until.Format("2006-01-02 15:04:05.000"), why, faults)
}

// check looks at a handshake with each certificate.
func (y *yearOracle) check() {
	if y.s == nil {
		return
	}
	synctest.Wait()
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, c := range y.certs {
		y.count.handshakes++
		if staple := c.handle.TLS().OCSPStaple; staple == nil {
			c.verified, c.response = nil, nil
			y.checkUnstapled(c)
		} else {
			y.checkStapled(c, staple)
		}
	}
}

func (y *yearOracle) checkUnstapled(c *yearCert) {
	n, now := &y.count, time.Now()
	had := c.newest != nil && c.newest.current(wall.Now())
	switch {
	case !now.Before(c.cert.Leaf.NotAfter):
	case now.Before(y.wrongUntil), had && now.Before(c.perhaps):
		n.outOfReach++
		if right := y.wrongUntil.Add(-clockRight); had && !now.Before(right) && !c.newest.revoked {
			g := n.gaps["a clock set right"]
			g.times, g.longest, g.promised = g.times+1, max(g.longest, now.Sub(right)), clockRight
			g.closest = g.longest.Seconds() / g.promised.Seconds()
			n.gaps["a clock set right"] = g
		}
	case had && !c.newest.revoked:
		y.wrong(&n.unstapled, "no staple, though a valid response was obtained", c)
		y.T.Logf("%+v", c.handle.Status())
	case c.revoked || c.isOut():
		n.outOfReach++
	default:
		if tooLong, _ := y.lacked(c, false); tooLong {
			y.wrong(&n.unstapled, "no staple, though the responder is in good health", c)
			st := c.handle.Status()
			st.Leaf = nil
			y.T.Logf("%+v", st)
			break
		}
		n.waiting++
	}
}

func (y *yearOracle) checkStapled(c *yearCert, staple []byte) {
	n, now := &y.count, wall.Now()
	if !bytes.Equal(staple, c.verified) {
		c.verified, c.response = staple, y.issued[sha256.Sum256(staple)]
		p, err := y.judge(staple, c)
		if c.response == nil || err != nil || p.Status != ocsp.Good {
			y.wrong(&n.unverified, fmt.Sprint("stapled is what the CA did not sign, or what is not good: ", err), c)
		}
	}
	r := c.response
	if r == nil {
		return
	}
	if r.cert != c {
		y.wrong(&n.foreign, "stapled is a response about another certificate", c)
	}
	if !now.Before(r.end) {
		y.wrong(&n.expired, "the staple has ended", c)
	}
	switch {
	case c.newest == r || time.Now().Before(y.wrongUntil):
	case c.newest == nil || !c.newest.current(now) && !c.newest.revoked:
		c.newest, c.held = r, true // from the cache, where it could not be read at first
	case c.newest.newer(r):
		y.wrong(&n.older, "the staple is older than what was obtained", c)
	case c.newest.outlasts():
		y.wrong(&n.undone, "a revocation was undone too soon", c)
	default:
		c.newest, c.held = r, true
	}
}

// handshake makes a real one.
func (y *yearOracle) handshake() {
	c := y.certs[y.rand.IntN(len(y.certs))]
	if !time.Now().Before(c.cert.Leaf.NotAfter) || time.Now().Before(y.wrongUntil) {
		return
	}
	client := c.place.ca.Client(c.cert.Leaf.DNSNames[0])
	client.VerifyConnection = new(staple.ResponseVerifier).VerifyConnection
	state, _, err := world.Connect(y.T, y.config, client)
	require.NoError(y.T, err)
	require.Equal(y.T, c.cert.Leaf.Raw, state.PeerCertificates[0].Raw)
	require.Equal(y.T, c.handle.TLS().OCSPStaple, state.OCSPResponse)
	y.count.real++
}

// lookAtEnds puts handshakes where staples end within the next hour.
func (y *yearOracle) lookAtEnds() {
	y.mu.Lock()
	ends := make(map[time.Time]bool)
	for _, c := range y.certs {
		if r := c.newest; r != nil && time.Until(r.end) > 0 && time.Until(r.end) <= time.Hour {
			ends[r.end] = true
		}
	}
	y.mu.Unlock()
	for end := range ends {
		y.at(end, y.check)
		y.at(end.Add(atTheEnd+time.Millisecond), y.check)
	}
}

// register notes that the CA has signed der about c. It reads the times with x/crypto/ocsp, so that
// they do not depend on the code under test.
func (y *yearOracle) register(c *yearCert, der []byte) {
	if y.known(der) {
		return
	}
	p, err := ocsp.ParseResponse(der, nil)
	if err != nil {
		return
	}
	end := p.NextUpdate
	if end.IsZero() {
		end = p.ThisUpdate.Add(world.Day)
	}
	if p.Certificate != nil && p.Certificate.NotAfter.Before(end) {
		end = p.Certificate.NotAfter
	}
	if c.cert.Leaf.NotAfter.Before(end) {
		end = c.cert.Leaf.NotAfter
	}
	r := &issued{cert: c, der: der, thisUpdate: p.ThisUpdate, producedAt: p.ProducedAt, end: end,
		revoked: p.Status == ocsp.Revoked, hold: p.RevocationReason == ocsp.CertificateHold}
	y.mu.Lock()
	defer y.mu.Unlock()
	y.issued[sha256.Sum256(der)] = r
	if c.archive = append(c.archive, r); len(c.archive) > 6 {
		c.archive[0].der = nil
		c.archive = c.archive[1:]
	}
}

// known reports whether the CA has signed der.
func (y *yearOracle) known(der []byte) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.issued[sha256.Sum256(der)] != nil
}

// judge verifies what is stapled without the code under test: with x/crypto/ocsp, and of ML-DSA, which that does not know,
// with crypto/x509.
func (y *yearOracle) judge(der []byte, c *yearCert) (*ocsp.Response, error) {
	issuer := c.issuer()
	if mldsa.KeyName(issuer.PublicKey) == "" {
		return ocsp.ParseResponseForCert(der, c.cert.Leaf, issuer)
	}
	p, err := ocsp.ParseResponseForCert(der, c.cert.Leaf, nil)
	switch {
	case err != nil:
	case p.Certificate != nil: // with whose key x/crypto has verified it
		err = p.Certificate.CheckSignatureFrom(issuer)
	default:
		err = issuer.CheckSignature(issuer.SignatureAlgorithm, p.TBSResponseData, p.Signature)
	}
	return p, err
}

// deliver notes that the process gets der as an answer about c, and whether it has lacked a staple for too long.
func (y *yearOracle) deliver(c *yearCert, der []byte) {
	hash := sha256.Sum256(der)
	y.mu.Lock()
	defer y.mu.Unlock()
	r := y.issued[hash]
	now := wall.Now()
	if r == nil || r.cert != c || !now.Before(r.end) || r.thisUpdate.After(now.Add(5*time.Minute)) {
		return
	}
	counts := y.counts(c, r)
	old := c.newest
	lacks := counts && !r.revoked && (old == nil || old.revoked || !old.current(now))
	if lacks && !c.isOut() && !c.revoked && !time.Now().Before(y.wrongUntil) {
		if tooLong, why := y.lacked(c, true); tooLong {
			y.wrong(&y.count.unstapled, "a staple came too late after "+why, c)
		}
	}
	if counts {
		c.newest, c.held = r, true
	}
	for _, s := range append(c.scopes(), &c.own) {
		s.heal()
	}
}

// counts reports whether r is to take the place of what c has, by the rule for revocations that are none of a hold too.
func (y *yearOracle) counts(c *yearCert, r *issued) bool {
	old, now := c.newest, time.Now()
	switch {
	case r.revoked:
		c.doubtful = nil
		return old == nil || r.newer(old)
	case old == nil:
		return true
	case old.outlasts():
		switch {
		case !r.newer(old):
		case c.doubtful == nil:
			c.doubtful, c.doubted = r, now
		case r != c.doubtful && now.Sub(c.doubted) >= 29*time.Minute: // of which one may be the time that requests take
			c.doubtful, c.perhaps = nil, now.Add(time.Hour)
			return true
		}
		return false
	case !old.current(wall.Now()) && !old.revoked:
		return true
	}
	return r.newer(old)
}

// A yearCache is a Cache whose disk fails at times.
type yearCache struct {
	staple.MemoryCache
	y                *year
	failGet, failPut bool // guarded by y.mu
}

func (c *yearCache) Get(ctx context.Context, key string) ([]byte, error) {
	c.y.mu.Lock()
	fail := c.failGet
	if fail {
		c.y.count.getErrors++
	}
	c.y.mu.Unlock()
	if fail {
		return nil, errDisk
	}
	return c.MemoryCache.Get(ctx, key)
}

func (c *yearCache) Put(ctx context.Context, key string, data []byte) error {
	c.y.mu.Lock()
	fail := c.failPut
	if fail {
		c.y.count.putErrors++
	}
	c.y.mu.Unlock()
	if fail {
		return errDisk
	}
	return c.MemoryCache.Put(ctx, key, data)
}

var errDisk = errors.New("no space left on device")
