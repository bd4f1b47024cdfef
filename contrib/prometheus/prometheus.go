// Package stapleprom shows what a [staple.Stapler] does as Prometheus metrics.
//
//	var stapler staple.Stapler
//	prometheus.MustRegister(stapleprom.Attach(&stapler))
//
// # Metrics
//
// The README lists the metrics, and alerts.yml and dashboard.json beside it use
// them.
//
// When a staple ends and when it is refreshed are exported as times, not as the
// seconds until then, as Prometheus advises: a countdown stands still when scrapes
// fail, just when it is needed. The seconds until the end are
//
//	staple_expiry_timestamp_seconds - time()
//
// How long a response is valid differs from authority to authority, so that no
// number of seconds is right for all. Where the staple of a certificate ends soon
// although a newer one was due, its [staple.State] is "expiring" rather than
// "stapled": no more than a quarter is left of what was left when it came. The alert
// rules look at that.
//
// # Cardinality
//
// The number of series is bounded, whatever certificates others upload. Three are
// exported for each certificate, as long as there are no more than
// MaxCertificates, and none for any of them beyond. What the alerts and most of
// the dashboard need is there in either case: counts by state, and the earliest
// times, for each responder host. The first 64 hosts are told apart for as long as
// the process runs, and all others are "other". Names and hosts are cut to 128
// bytes, and what is not printable in them is replaced.
//
// Of the peers that a [staple.Checker] asks about there are counts by state, and none
// has series of its own. What Checkers decide is counted for each CA, of which again
// 64 are told apart.
package stapleprom

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple"
)

const (
	defaultMaxCertificates = 1000
	maxHosts               = 64
	maxCAs                 = 64
	maxLabel               = 128 // bytes

	otherHosts  = "other"
	otherCAs    = "other"
	noResponder = "none"
)

// A Collector is a [prometheus.Collector] for one Stapler: see [Attach]. Its fields must not be
// changed once it is in use. It is safe for concurrent use and must not be copied.
//
// Collectors of several Staplers can be registered with different labels: see
// [prometheus.WrapRegistererWith].
type Collector struct {
	// Stapler is the one whose certificates are shown. If nil, none are.
	Stapler *staple.Stapler

	// MaxCertificates is the number of certificates up to which there are series
	// for each of them. If 0, it is 1000; if negative, there never are any.
	MaxCertificates int

	once      sync.Once
	fetches   *prometheus.CounterVec
	failures  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	unstapled *prometheus.CounterVec

	mu     sync.Mutex
	hosts  map[string]*host // by label
	named  int              // of them, those that are neither otherHosts nor noResponder
	leaves map[*x509.Certificate]*leaf
	survey uint            // how many there were
	cas    map[string]bool // the labels of those that are told apart
}

// A host is what there is to say about the certificates that name one responder.
type host struct {
	label     string
	unstapled prometheus.Counter
	gauges
}

// gauges are counted anew at each survey.
type gauges struct {
	states      [staple.StateNoResponder + 1][2]int // the latter: whether Must-Staple
	failing     int
	paused      int
	expiry      time.Time // the earliest; zero: none
	nextRefresh time.Time
}

// A leaf is what is remembered of a certificate from one survey to the next.
type leaf struct {
	host      *host
	unstapled uint64 // handshakes that were counted already
	survey    uint   // the last in which it was there
}

var (
	perCertificate = []string{"name", "serial", "responder_host"}
	perHost        = []string{"responder_host"}

	stateDesc = prometheus.NewDesc("staple_certificate_state",
		"1 for the state that the certificate is in.",
		append(perCertificate[:3:3], "must_staple", "state"), nil)
	expiryDesc = prometheus.NewDesc("staple_expiry_timestamp_seconds",
		"End of the OCSP response that is held for the certificate, in Unix time.",
		perCertificate, nil)
	nextRefreshDesc = prometheus.NewDesc("staple_next_refresh_timestamp_seconds",
		"When the next OCSP response for the certificate is fetched, in Unix time.",
		perCertificate, nil)
	certificatesDesc = prometheus.NewDesc("staple_certificates",
		"Certificates in each state.",
		append(perHost[:1:1], "must_staple", "state"), nil)
	failingDesc = prometheus.NewDesc("staple_failing_certificates",
		"Certificates whose last fetch failed, whether or not a staple is still held.",
		perHost, nil)
	pausedDesc = prometheus.NewDesc("staple_paused_certificates",
		"Certificates that are not asked about at present, since requests to their responder have failed.",
		perHost, nil)
	earliestExpiryDesc = prometheus.NewDesc("staple_earliest_expiry_timestamp_seconds",
		"The earliest end among the OCSP responses that are held, in Unix time.",
		perHost, nil)
	earliestRefreshDesc = prometheus.NewDesc("staple_earliest_next_refresh_timestamp_seconds",
		"When the next OCSP response for any of the certificates is fetched, in Unix time.",
		perHost, nil)

	perCA = []string{"ca"}

	peersDesc = prometheus.NewDesc("staple_peers",
		"Peers that are remembered and not served, in each state.",
		[]string{"state"}, nil)
	checkedDesc = prometheus.NewDesc("staple_check_connections_total",
		"Connections that Checkers have decided about.",
		append(perCA[:1:1], "result"), nil)
	waitsDesc = prometheus.NewDesc("staple_check_waits_total",
		"Connections that waited for an answer about the peer.",
		perCA, nil)
	waitDesc = prometheus.NewDesc("staple_check_wait_seconds_total",
		"How long connections waited for an answer about the peer, together.",
		perCA, nil)
)

// peerStates are those that peers can be in. A certificate that is served is never unanswered or answered.
var peerStates = []staple.State{staple.StateUnanswered, staple.StateRevoked, staple.StateExpired, staple.StateWaiting,
	staple.StateAnswered, staple.StateNoResponder}

// fetchResults are the kinds of events that are about a fetch.
var fetchResults = []staple.EventKind{staple.EventStapled, staple.EventUnchanged, staple.EventRevoked, staple.EventReinstated,
	staple.EventFailed}

func (c *Collector) init() {
	c.hosts = make(map[string]*host)
	c.leaves = make(map[*x509.Certificate]*leaf)
	c.cas = make(map[string]bool)
	c.fetches = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "staple_fetches_total",
		Help: "Fetches of an OCSP response that have ended.",
	}, append(perHost[:1:1], "result"))
	c.failures = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "staple_fetch_failures_total",
		Help: "Fetches that brought no acceptable OCSP response.",
	}, append(perHost[:1:1], "reason"))
	c.durations = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "staple_fetch_duration_seconds",
		Help:    "How long fetches took, those that failed included.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30},
	}, perHost)
	c.unstapled = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "staple_unstapled_handshakes_total",
		Help: "TLS handshakes without a staple although there is somebody to ask.",
	}, perHost)
}

// Attach returns a Collector for s, and has s.OnEvent tell it of events. A function that is there already is called as
// before, after the Collector. Since a Stapler reads its fields when it is first used, call Attach after s.OnEvent is set and
// before anything else is done with s, and once.
func Attach(s *staple.Stapler) *Collector {
	c := &Collector{Stapler: s}
	next := s.OnEvent
	s.OnEvent = func(ev staple.Event) {
		c.Event(ev)
		if next != nil {
			next(ev)
		}
	}
	return c
}

// Event counts what ev tells of. It is for [staple.Stapler.OnEvent], or to be called from the function there: see [Attach].
func (c *Collector) Event(ev staple.Event) {
	if !ev.Fetched && ev.Kind != staple.EventFailed {
		return // it found its response elsewhere
	}
	c.once.Do(c.init)
	c.mu.Lock()
	h := c.hostOf(ev.Status)
	c.mu.Unlock()
	c.fetches.WithLabelValues(h.label, ev.Kind.String()).Inc()
	c.durations.WithLabelValues(h.label).Observe(ev.Duration.Seconds())
	if ev.Kind == staple.EventFailed {
		c.failures.WithLabelValues(h.label, reason(ev.Err)).Inc()
	}
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	c.once.Do(c.init)
	for _, d := range []*prometheus.Desc{stateDesc, expiryDesc, nextRefreshDesc, certificatesDesc, failingDesc, pausedDesc,
		earliestExpiryDesc, earliestRefreshDesc, peersDesc, checkedDesc, waitsDesc, waitDesc} {
		ch <- d
	}
	c.fetches.Describe(ch)
	c.failures.Describe(ch)
	c.durations.Describe(ch)
	c.unstapled.Describe(ch)
}

// Collect implements [prometheus.Collector]. It asks every certificate, and every
// peer, for its status.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.once.Do(c.init)
	for _, m := range c.certificates() {
		ch <- m
	}
	for _, m := range c.peers() {
		ch <- m
	}
	c.fetches.Collect(ch)
	c.failures.Collect(ch)
	c.durations.Collect(ch)
	c.unstapled.Collect(ch)
}

// certificates looks at all certificates, and returns the gauges that tell of them.
// One call at a time does, so that no handshake is counted twice.
func (c *Collector) certificates() []prometheus.Metric {
	if c.Stapler == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		h.gauges = gauges{}
	}
	c.survey++
	limit := cmp.Or(c.MaxCertificates, defaultMaxCertificates)
	count := 0
	var all []certificate // up to limit
	for handle := range c.Stapler.Certificates() {
		st := handle.Status()
		if st.Peer {
			continue // it was removed just now
		}
		l := c.leaves[st.Leaf]
		if l == nil {
			l = new(leaf)
			c.leaves[st.Leaf] = l
		}
		l.host = c.hostOf(st)
		if l.survey == c.survey {
			continue // another handle to the same leaf
		}
		l.survey = c.survey
		if st.UnstapledHandshakes < l.unstapled {
			l.unstapled = 0 // it was removed, and added anew
		}
		l.host.unstapled.Add(float64(st.UnstapledHandshakes - l.unstapled))
		l.unstapled = st.UnstapledHandshakes

		cert := certificate{leaf: st.Leaf, host: l.host, state: st.State, mustStaple: st.MustStaple}
		if cert.state != staple.StateExpired {
			cert.expiry, cert.nextRefresh = st.Expires, st.NextRefresh
		}
		l.host.add(&cert, cert.state != staple.StateExpired && st.Failures > 0)
		if !st.PausedUntil.IsZero() {
			l.host.paused++
		}
		if count++; count <= limit {
			all = append(all, cert)
		}
	}
	maps.DeleteFunc(c.leaves, func(_ *x509.Certificate, l *leaf) bool { return l.survey != c.survey })

	var metrics []prometheus.Metric
	if count <= limit {
		shown := make(map[[3]string]*certificate)
		for i := range all {
			cert := &all[i]
			labels := [3]string{certificateName(cert.leaf), serial(cert.leaf), cert.host.label}
			if other := shown[labels]; other == nil || cert.worse(other) {
				shown[labels] = cert
			}
		}
		for labels, cert := range shown {
			metrics = cert.metrics(metrics, labels)
		}
	}
	for _, h := range c.hosts {
		metrics = h.metrics(metrics)
	}
	return metrics
}

// peers returns what tells of peers, and nothing until there has been one.
func (c *Collector) peers() (metrics []prometheus.Metric) {
	if c.Stapler == nil {
		return nil
	}
	stats := c.Stapler.CheckStats()
	if len(stats) == 0 {
		return nil
	}
	var states [staple.StateNoResponder + 1]int
	for handle := range c.Stapler.Peers() {
		if st := handle.Status(); st.Peer {
			states[st.State]++
		}
	}
	for _, s := range peerStates {
		metrics = append(metrics, gauge(peersDesc, float64(states[s]), s.String()))
	}
	for ca, sum := range c.byCA(stats) {
		counter := func(d *prometheus.Desc, value float64, labels ...string) {
			metrics = append(metrics, prometheus.MustNewConstMetric(d, prometheus.CounterValue, value, append([]string{ca}, labels...)...))
		}
		counter(checkedDesc, float64(sum.Passed), "passed")
		counter(checkedDesc, float64(sum.Refused), "refused")
		counter(checkedDesc, float64(sum.Unanswered), "unanswered")
		counter(checkedDesc, float64(sum.PassedUnanswered), "passed_unanswered")
		counter(waitsDesc, float64(sum.Waited))
		counter(waitDesc, sum.Waiting.Seconds())
	}
	return metrics
}

// byCA adds up what has the same label.
func (c *Collector) byCA(stats []staple.CheckStats) map[string]staple.CheckStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	sums := make(map[string]staple.CheckStats)
	for _, st := range stats {
		ca := label(st.CA)
		switch {
		case st.CA == "others": // of the Stapler's
			ca = otherCAs
		case c.cas[ca]:
		case len(c.cas) < maxCAs:
			c.cas[ca] = true
		default:
			ca = otherCAs
		}
		sum := sums[ca]
		sum.Passed += st.Passed
		sum.Refused += st.Refused
		sum.Unanswered += st.Unanswered
		sum.PassedUnanswered += st.PassedUnanswered
		sum.Waited += st.Waited
		sum.Waiting += st.Waiting
		sums[ca] = sum
	}
	return sums
}

// A certificate is what the series of one certificate show.
type certificate struct {
	leaf        *x509.Certificate
	host        *host
	state       staple.State
	mustStaple  bool
	expiry      time.Time // zero: none
	nextRefresh time.Time // zero: never
}

// worse reports whether c is to be shown rather than other.
func (c *certificate) worse(other *certificate) bool {
	if c.state != other.state {
		return c.state < other.state
	}
	return earlier(c.expiry, other.expiry)
}

func (c *certificate) metrics(metrics []prometheus.Metric, labels [3]string) []prometheus.Metric {
	metrics = append(metrics, gauge(stateDesc, 1, append(labels[:3:3], fmt.Sprint(c.mustStaple), c.state.String())...))
	metrics = timestamp(metrics, expiryDesc, c.expiry, labels[:]...)
	return timestamp(metrics, nextRefreshDesc, c.nextRefresh, labels[:]...)
}

func (h *host) add(c *certificate, failing bool) {
	must := 0
	if c.mustStaple {
		must = 1
	}
	h.states[c.state][must]++
	if failing {
		h.failing++
	}
	if earlier(c.expiry, h.expiry) {
		h.expiry = c.expiry
	}
	if earlier(c.nextRefresh, h.nextRefresh) {
		h.nextRefresh = c.nextRefresh
	}
}

func (h *host) metrics(metrics []prometheus.Metric) []prometheus.Metric {
	for s := staple.StateMustStapleMissing; s <= staple.StateNoResponder; s++ {
		if s == staple.StateUnanswered || s == staple.StateAnswered {
			continue
		}
		n := h.states[s]
		metrics = append(metrics,
			gauge(certificatesDesc, float64(n[0]), h.label, "false", s.String()),
			gauge(certificatesDesc, float64(n[1]), h.label, "true", s.String()))
	}
	metrics = append(metrics, gauge(failingDesc, float64(h.failing), h.label), gauge(pausedDesc, float64(h.paused), h.label))
	metrics = timestamp(metrics, earliestExpiryDesc, h.expiry, h.label)
	return timestamp(metrics, earliestRefreshDesc, h.nextRefresh, h.label)
}

// earlier reports whether t is a time, and before u if that is one.
func earlier(t, u time.Time) bool { return !t.IsZero() && (u.IsZero() || t.Before(u)) }

func gauge(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

// timestamp appends a gauge that shows t, unless it is zero.
func timestamp(metrics []prometheus.Metric, d *prometheus.Desc, t time.Time, labels ...string) []prometheus.Metric {
	if t.IsZero() {
		return metrics
	}
	return append(metrics, gauge(d, float64(t.UnixMilli())/1e3, labels...))
}

// hostOf returns the host that answers for a certificate, with mu held: the one that answered last, or was asked in
// vain, or else that of the first URL.
func (c *Collector) hostOf(st staple.Status) *host {
	at := st.Responder
	if failed, ok := errors.AsType[*staple.HTTPError](st.Err); ok && at == "" {
		at = failed.URL
	}
	if at == "" && len(st.Leaf.OCSPServer) > 0 {
		at = st.Leaf.OCSPServer[0]
	}
	name := noResponder
	if at != "" {
		name = otherHosts
		if u, err := url.Parse(strings.TrimSpace(at)); err == nil && u.Host != "" {
			name = label(strings.ToLower(u.Host))
		}
	}
	if c.hosts[name] == nil && name != noResponder && name != otherHosts {
		if c.named == maxHosts {
			name = otherHosts
		} else {
			c.named++
		}
	}
	if h := c.hosts[name]; h != nil {
		return h
	}
	h := &host{label: name, unstapled: c.unstapled.WithLabelValues(name)}
	c.hosts[name] = h
	c.durations.WithLabelValues(name)
	for _, kind := range fetchResults {
		c.fetches.WithLabelValues(name, kind.String())
	}
	return h
}

func certificateName(leaf *x509.Certificate) string {
	switch {
	case len(leaf.DNSNames) > 0:
		return label(leaf.DNSNames[0])
	case leaf.Subject.CommonName != "":
		return label(leaf.Subject.CommonName)
	case len(leaf.IPAddresses) > 0:
		return leaf.IPAddresses[0].String()
	}
	return ""
}

func serial(leaf *x509.Certificate) string {
	if leaf.SerialNumber == nil {
		return ""
	}
	return label(leaf.SerialNumber.Text(16))
}

// label makes a label's value of what somebody else wrote: valid UTF-8, printable,
// and of bounded length.
func label(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, s[:min(len(s), 2*maxLabel)])
	if len(s) > maxLabel {
		s = strings.ToValidUTF8(s[:maxLabel], "") + "..."
	}
	return s
}

var (
	verifyReasons = map[staple.Reason]string{
		staple.ReasonMalformed:            "malformed",
		staple.ReasonBadSignature:         "bad_signature",
		staple.ReasonUnauthorizedSigner:   "unauthorized_signer",
		staple.ReasonWrongCertificate:     "wrong_certificate",
		staple.ReasonNotYetValid:          "not_yet_valid",
		staple.ReasonExpired:              "expired",
		staple.ReasonUnsupportedAlgorithm: "unsupported_algorithm",
	}
	statusReasons = map[ocsp.ResponseStatus]string{
		ocsp.Malformed:         "malformed_request",
		ocsp.InternalError:     "internal_error",
		ocsp.TryLater:          "try_later",
		ocsp.SignatureRequired: "signature_required",
		ocsp.Unauthorized:      "unauthorized",
	}
)

// reason returns why a fetch failed, in one of few words. Of a fetch that failed in
// several ways, it is the one that matters most: a response that was refused, an
// error status of OCSP's, then what went wrong on the way.
func reason(err error) string {
	if errors.Is(err, staple.ErrNoIssuer) {
		return "no_issuer"
	}
	if e, ok := errors.AsType[*staple.VerifyError](err); ok && verifyReasons[e.Reason] != "" {
		return verifyReasons[e.Reason]
	}
	if e, ok := errors.AsType[ocsp.ResponseError](err); ok && statusReasons[e.Status] != "" {
		return statusReasons[e.Status]
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "timeout"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "dns"
	}
	e, ok := errors.AsType[*staple.HTTPError](err)
	switch {
	case !ok:
		return "other"
	case e.StatusCode == 0:
		return "connection"
	case e.StatusCode == 200:
		return "unusable_answer"
	case e.StatusCode >= 300 && e.StatusCode < 600:
		return fmt.Sprintf("http_%dxx", e.StatusCode/100)
	}
	return "http_other"
}
