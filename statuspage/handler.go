// Package statuspage shows the certificates of a [staple.Stapler] in a browser: what
// is stapled, until when, and why not.
//
//	mux.Handle("/staples/", &statuspage.Handler{Stapler: &stapler})
//
// It has no authentication of its own, and names every certificate, issuer and
// responder of the server: it belongs on an administrator's address or behind what
// protects one, not on the listener that it reports on. An address on loopback alone keeps
// other machines out, but not what web pages do with the browser on this one (DNS
// rebinding), unless something looks at the Host field.
//
// The page needs no script and loads nothing. It lists the certificates, the worst
// first, with a search and a filter by state; each has a page of its own with the
// response decoded.
//
// # States
//
// A certificate has the [staple.State] that its Status has, which says when each is meant. The list goes by them:
// must-staple-missing comes first, then unstapled, revoked, expired, expiring and failing, which need attention, and then
// waiting, stapled and no-responder. Within a state those whose response ends first come first, then those that the
// Stapler has had for longer. Of peers the order is unanswered, which needs attention, revoked, expired, waiting, answered
// and no-responder. Where requests to its responder fail and one has to wait, the page tells until when, and what failed last.
//
// # Peers
//
// Peers that a [staple.Checker] asks about are not among the certificates, but in a list of their own, which the first page
// links to once there are any, with their states; those that the Stapler serves as well are among the certificates. It has
// the age of the answer about each, its end, who gave it and the last error, and how the Checkers have decided, for each CA
// of theirs. There are 131,072 peers at most, so that a list takes a tenth of a second or two.
//
// # Addresses
//
// All is at the one path that the Handler is mounted at, told apart by the query:
//
//	?q=WORDS        certificates about which each word is found, in whatever case, in a name, the
//	                subject, serial number (with or without colons), issuer, responder or state
//	?state=STATE    those in one state
//	?page=N&per=N   the N-th page, from 1, of so many certificates: 50, and 1000 at most
//	?list=peers     the peers, with the same search, filter and pages
//	?cert=ID        one certificate, or peer: ID is the SHA-256 hash of its DER, in hexadecimal
//	?format=json    as JSON: a List, with list=peers a PeerList, or with cert a Detail
//	?cert=ID&format=der   the response held, in DER
//
// The order changes as time passes, so that a certificate may be on two pages, or on
// none, when they are read one after the other. Past the last page, there are none.
package statuspage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-staple/staple"
)

const (
	defaultPer  = 50
	maxPer      = 1000
	maxQuery    = 256             // characters
	refreshWait = 5 * time.Second // for an attempt, before the browser is sent on
)

// A Handler is an [http.Handler] that shows what a Stapler does. It answers at the path
// it is mounted at: "/" after [http.StripPrefix], or that of the [http.ServeMux] pattern,
// which must have no wildcards. All its links are relative. It is safe for concurrent
// use as long as its fields are left alone.
type Handler struct {
	// Stapler is the one to show. It must not be nil.
	Stapler *staple.Stapler

	// Refresh puts a button on each certificate's page, which asks the responder now:
	// a POST to ?cert=ID. Those that another site makes a browser send are refused with
	// [http.CrossOriginProtection]. The POST is answered, with a redirect to the page,
	// when the attempt has ended, or after five seconds: it then goes on in the background,
	// within the bounds of [staple.Stapler.Concurrency].
	Refresh bool
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", contentSecurityPolicy)
	header.Set("X-Content-Type-Options", "nosniff")
	// Not no-referrer: with that, browsers send "Origin: null" with a POST, even to where the page is from.
	header.Set("Referrer-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Cache-Control", "no-store")

	if !atRoot(r) {
		h.fail(w, r, http.StatusNotFound, "There is nothing at this address.")
		return
	}
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		h.fail(w, r, http.StatusBadRequest, "This address is malformed: "+err.Error()+".")
		return
	}
	refreshable := h.Refresh && q.cert != ""
	switch {
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
	case r.Method == http.MethodPost && refreshable:
		if err := new(http.CrossOriginProtection).Check(r); err != nil {
			h.fail(w, r, http.StatusForbidden, "This request came from another site, and was refused.")
			return
		}
	default:
		allow := "GET, HEAD"
		if refreshable {
			allow += ", POST"
		}
		header.Set("Allow", allow)
		h.fail(w, r, http.StatusMethodNotAllowed, "The method "+visible(r.Method, 20)+" is not for this address.")
		return
	}

	now := time.Now()
	if q.cert == "" {
		if q.format == "der" {
			h.fail(w, r, http.StatusBadRequest, "This address is malformed: format=der goes with cert.")
			return
		}
		list := h.list(q, now)
		if q.format == "json" {
			writeJSON(w, http.StatusOK, list.json())
		} else {
			h.render(w, r, http.StatusOK, "list", list)
		}
		return
	}
	c, handles := h.find(q.cert)
	if c == nil {
		h.fail(w, r, http.StatusNotFound, "The Stapler has no certificate with this SHA-256 hash. It may have been replaced.")
		return
	}
	if r.Method == http.MethodPost {
		ctx, cancel := context.WithTimeout(r.Context(), refreshWait)
		defer cancel()
		c.Refresh(ctx) // the page tells what came of it
		asked := "ended"
		if ctx.Err() != nil {
			asked = "pending"
		}
		// http.Redirect would make the address absolute, with a path that StripPrefix has cut.
		header.Set("Location", "?cert="+q.cert+"&asked="+asked)
		w.WriteHeader(http.StatusSeeOther)
		return
	}
	d := h.detail(c, handles, q, now)
	switch q.format {
	case "json":
		writeJSON(w, http.StatusOK, d.json())
	case "der":
		if d.der == nil {
			h.fail(w, r, http.StatusNotFound, "No response is held for this certificate.")
			return
		}
		header.Set("Content-Disposition", `attachment; filename="`+q.cert[:16]+`.ors"`)
		send(w, http.StatusOK, "application/ocsp-response", d.der)
	default:
		h.render(w, r, http.StatusOK, "detail", d)
	}
}

// atRoot reports whether r is for the very path that the Handler is mounted at, and not one below.
func atRoot(r *http.Request) bool {
	if r.URL.Path == "" || r.URL.Path == "/" {
		return true
	}
	_, pattern, found := strings.Cut(r.Pattern, "/") // without method and host
	return found && r.URL.Path == "/"+strings.TrimSuffix(pattern, "{$}")
}

// find returns a handle to the certificate whose leaf has the SHA-256 hash id, and how many there are. If it is not served,
// it is that of a peer.
func (h *Handler) find(id string) (c *staple.Certificate, handles int) {
	var leaf *x509.Certificate
	want, _ := hex.DecodeString(id)
	for other := range h.Stapler.Certificates() {
		if c == nil {
			if sum := sha256.Sum256(other.TLS().Certificate[0]); bytes.Equal(sum[:], want) {
				c, leaf = other, other.Status().Leaf
			}
		}
		if c != nil && other.Status().Leaf == leaf {
			handles++
		}
	}
	if c != nil {
		return c, handles
	}
	for other := range h.Stapler.Peers() {
		if sum := sha256.Sum256(other.TLS().Certificate[0]); bytes.Equal(sum[:], want) {
			return other, 1
		}
	}
	return nil, 0
}

func (h *Handler) render(w http.ResponseWriter, r *http.Request, status int, name string, data any) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, page{Host: visible(r.Host, 80), Refresh: h.Refresh, Data: data}); err != nil {
		http.Error(w, "statuspage: "+err.Error(), http.StatusInternalServerError)
		return
	}
	send(w, status, "text/html; charset=utf-8", b.Bytes())
}

func (h *Handler) fail(w http.ResponseWriter, r *http.Request, status int, text string) {
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, status, struct {
			Error string `json:"error"`
		}{text})
		return
	}
	h.render(w, r, status, "failure", failure{Status: http.StatusText(status), Text: text, Home: atRoot(r)})
}

func writeJSON(w http.ResponseWriter, status int, data any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(data); err != nil {
		http.Error(w, "statuspage: "+err.Error(), http.StatusInternalServerError)
		return
	}
	send(w, status, "application/json", b.Bytes())
}

func send(w http.ResponseWriter, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

var contentSecurityPolicy = func() string {
	sum := sha256.Sum256([]byte(style))
	return fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
		base64.StdEncoding.EncodeToString(sum[:]))
}()
