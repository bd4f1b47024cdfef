package statuspage

import (
	"time"
)

// A List is what ?format=json answers: a page of certificates, the worst first. Times
// in this and the other types are in UTC, in whole seconds, and left out where there
// is none; text is as it is in the certificate and was not made safe for a terminal.
type List struct {
	Time         time.Time      `json:"time"`     // when this was true
	Total        int            `json:"total"`    // certificates that the Stapler has
	States       map[string]int `json:"states"`   // how many of these are in each state, with all states
	Matching     int            `json:"matching"` // certificates that q and state find
	Page         int            `json:"page"`
	Pages        int            `json:"pages"` // at least 1
	Certificates []Certificate  `json:"certificates"`
	Peers        PeerCounts     `json:"peers"` // which are not counted above
	CAs          []CA           `json:"cas"`   // of peers, by name
}

// PeerCounts are how many peers a [staple.Checker] remembers, but for those that are served as well.
type PeerCounts struct {
	Total  int            `json:"total"`
	States map[string]int `json:"states"` // how many are in each state, with all that peers can be in
}

// A PeerList is what ?list=peers&format=json answers: a page of the peers that a [staple.Checker] remembers, the worst first.
type PeerList struct {
	Time time.Time `json:"time"` // when this was true
	PeerCounts
	Matching int           `json:"matching"` // peers that q and state find
	Page     int           `json:"page"`
	Pages    int           `json:"pages"` // at least 1
	Peers    []Certificate `json:"peers"`
	CAs      []CA          `json:"cas"` // by name
}

// A CA is how Checkers have decided about peers with certificates of one CA, as in staple.CheckStats.
type CA struct {
	CA               string  `json:"ca"`
	Passed           uint64  `json:"passed"` // connections
	Refused          uint64  `json:"refused"`
	Unanswered       uint64  `json:"unanswered"`       // refused
	PassedUnanswered uint64  `json:"passedUnanswered"` // passed all the same: FailOpen
	Waited           uint64  `json:"waited"`           // connections that waited for an answer
	WaitSeconds      float64 `json:"waitSeconds"`      // how long these did, together
}

// A Certificate is the state of one leaf, however many handles the Stapler has for it, or of one peer.
type Certificate struct {
	ID         string    `json:"id"` // SHA-256 of the DER, in hexadecimal
	State      string    `json:"state"`
	Names      []string  `json:"names"` // DNS names, IP addresses, URIs and mail addresses
	Subject    string    `json:"subject"`
	Issuer     string    `json:"issuer"`
	Serial     string    `json:"serial"` // in hexadecimal
	NotBefore  time.Time `json:"notBefore"`
	NotAfter   time.Time `json:"notAfter"`
	Responders []string  `json:"responders"` // URLs in the certificate, without credentials
	Handles    int       `json:"handles"`

	// As in staple.Status.
	Peer        bool      `json:"peer,omitempty"` // thisUpdate is that of the answer held, and expires its end; nothing is stapled
	MustStaple  bool      `json:"mustStaple"`
	Stapled     bool      `json:"stapled"`
	Revoked     bool      `json:"revoked"`
	ThisUpdate  time.Time `json:"thisUpdate,omitzero"`
	Expires     time.Time `json:"expires,omitzero"`
	NextRefresh time.Time `json:"nextRefresh,omitzero"`
	PausedUntil time.Time `json:"pausedUntil,omitzero"`
	PauseError  string    `json:"pauseError,omitempty"`
	LastAttempt time.Time `json:"lastAttempt,omitzero"`
	Responder   string    `json:"responder,omitempty"` // the URL that answered last
	Failures    int       `json:"failures"`
	Unstapled   uint64    `json:"unstapledHandshakes"`
	Error       string    `json:"error,omitempty"` // of the last attempt
}

// A Detail is what ?cert=ID&format=json answers.
type Detail struct {
	Time time.Time `json:"time"`
	Certificate
	Response *Response `json:"response,omitempty"` // that is held
}

// A Response is an OCSP response that is held: stapled, unless it has ended, or says that the certificate is revoked and that is not stapled.
type Response struct {
	Status             string    `json:"status,omitempty"` // good or revoked
	RevokedAt          time.Time `json:"revokedAt,omitzero"`
	RevocationReason   string    `json:"revocationReason,omitempty"` // by its name in RFC 5280, such as keyCompromise
	ThisUpdate         time.Time `json:"thisUpdate,omitzero"`
	NextUpdate         time.Time `json:"nextUpdate,omitzero"`
	ProducedAt         time.Time `json:"producedAt,omitzero"`
	ResponderName      string    `json:"responderName,omitempty"`    // the responderID, which is either this
	ResponderKeyHash   string    `json:"responderKeyHash,omitempty"` // or this, in hexadecimal
	Signer             string    `json:"signer,omitempty"`           // subject of the signer's certificate, if that is known
	SignerNotAfter     time.Time `json:"signerNotAfter,omitzero"`
	SignatureAlgorithm string    `json:"signatureAlgorithm,omitempty"`
	Hash               string    `json:"hash,omitempty"`  // of the CertID, such as SHA-1
	Size               int       `json:"size"`            // in bytes
	Error              string    `json:"error,omitempty"` // why it could not be decoded here
}

func seconds(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC().Truncate(time.Second)
}

func (c *counts) json(peers bool) map[string]int {
	out := make(map[string]int)
	for s := range states(peers) {
		out[s.String()] = c.states[s.State]
	}
	return out
}

func (l *list) json() any {
	certificates := make([]Certificate, 0, len(l.rows))
	for _, c := range l.Certificates() {
		certificates = append(certificates, c.json())
	}
	cas := make([]CA, 0, len(l.cas))
	for _, c := range l.cas {
		cas = append(cas, CA{c.CA, c.Passed, c.Refused, c.Unanswered, c.PassedUnanswered, c.Waited, c.Waiting.Seconds()})
	}
	peers := PeerCounts{l.peers.Total, l.peers.json(true)}
	if l.OfPeers {
		return PeerList{seconds(l.now), peers, l.Matching, l.Page, l.Pages(), certificates, cas}
	}
	return List{
		Time:         seconds(l.now),
		Total:        l.Total,
		States:       l.counts.json(false),
		Matching:     l.Matching,
		Page:         l.Page,
		Pages:        l.Pages(),
		Certificates: certificates,
		Peers:        peers,
		CAs:          cas,
	}
}

func (c *certificate) json() Certificate {
	out := Certificate{
		ID:          c.ID,
		State:       c.State.String(),
		Names:       allNames(c.Leaf),
		Subject:     c.Leaf.Subject.String(),
		Issuer:      c.Leaf.Issuer.String(),
		Serial:      c.Serial(),
		NotBefore:   seconds(c.Leaf.NotBefore),
		NotAfter:    seconds(c.Leaf.NotAfter),
		Responders:  append([]string{}, c.Responders()...),
		Handles:     c.Handles,
		Peer:        c.Peer,
		MustStaple:  c.MustStaple,
		Stapled:     c.Stapled,
		Revoked:     c.Revoked,
		ThisUpdate:  seconds(c.Status.ThisUpdate),
		Expires:     seconds(c.Status.Expires),
		NextRefresh: seconds(c.Status.NextRefresh),
		PausedUntil: seconds(c.Status.PausedUntil),
		LastAttempt: seconds(c.Status.LastAttempt),
		Responder:   c.Status.Responder,
		Failures:    c.Failures,
		Unstapled:   c.UnstapledHandshakes,
	}
	if c.Err != nil {
		out.Error = c.Err.Error()
	}
	if c.PauseErr != nil {
		out.PauseError = c.PauseErr.Error()
	}
	return out
}

func (d *detail) json() Detail {
	return Detail{Time: seconds(d.now), Certificate: d.certificate.json(), Response: d.Decoded()}
}
