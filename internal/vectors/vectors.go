// Package vectors is the file testdata/vectors/ocsp.json: stapletest's forgeries and oddities, for those who
// verify OCSP responses in any language. Its README says what is in it.
//
// [Make] makes the file in a testing/synctest bubble, whose clock stands still, the same bytes each time:
//
//	go generate ./internal/vectors
//
// [Read] reads it. Who among other verifiers gets a vector wrong is measured by contrib/verifiers, which writes
// measured.json here; the file has that beside each vector.
package vectors

//go:generate go test -run ^TestTheFileIsWhatIsMade$ -update .

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/go-staple/staple/internal/scene"
	"github.com/go-staple/staple/stapletest"
)

// A File is all of ocsp.json.
type File struct {
	Schema    string     `json:"$schema"`
	About     string     `json:"about"`
	Verifiers []Verifier `json:"verifiers"`
	Groups    []Group    `json:"groups"`
}

// A Verifier is a program or library that others wrote.
type Verifier struct {
	Name    string `json:"name"`    // as in [Vector.Others]
	Program string `json:"program"` // how it was asked; empty: it was not
	Version string `json:"version"`
}

// A Group has all vectors about one certificate. All certificates and responses are in DER.
type Group struct {
	Name    string    `json:"name"`
	Time    time.Time `json:"time"` // to judge at
	Root    []byte    `json:"root"`
	Issuer  []byte    `json:"issuer"`
	Leaf    []byte    `json:"leaf"`
	LeafKey []byte    `json:"leafKey"` // in PKCS #8, to staple with
	Vectors []Vector  `json:"vectors"`
}

// A Vector is one response, and what is to be said of it.
type Vector struct {
	Name    string   `json:"name"`
	Why     string   `json:"why"`
	RFC     []string `json:"rfc"` // what Why names
	Verdict string   `json:"verdict"`
	Status  string   `json:"status,omitempty"` // where it is accepted
	Reason  string   `json:"reason,omitempty"` // where it is refused: the text of a staple.Reason

	// Others has [Right], [Wrong] or [Unknown] for each verifier.
	Others   map[string]string `json:"others"`
	Response []byte            `json:"response"`
}

// The values of Verdict.
const (
	Accept = "accept"
	Refuse = "refuse"
)

// Those of Others.
const (
	Right   = "right"
	Wrong   = "wrong"
	Unknown = "unknown" // nobody has measured it
)

// Names are the verifiers.
var Names = []string{"chrome", "firefox", "openssl", "gnutls", "nss", "botan"}

// A Measurement is what contrib/verifiers found: for the verifiers that it could ask, whether they get a
// vector right as it came, by the names of group and vector.
type Measurement struct {
	Verifiers []Verifier                              `json:"verifiers"`
	Results   map[string]map[string]map[string]string `json:"results"`
}

// seen is what was seen of verifiers that have no program to run: mozilla::pkix and the pki library of Chrome, when they
// were called with vectors like these.
var seen = map[string]map[string]string{
	"what is no certificate, delegate":                        {"firefox": Wrong},
	"delegate, what is no certificate":                        {"firefox": Wrong},
	"nine strangers, delegate":                                {"firefox": Wrong},
	"another delegate of the same name, delegate, by name":    {"firefox": Wrong},
	"a delegate's certificate with bytes after its signature": {"firefox": Wrong, "chrome": Wrong},
	"a delegate in the name of the issuer, by name":           {"firefox": Right},
	"producedAt in an hour":                                   {"firefox": Right, "chrome": Right},
}

//go:embed measured.json
var measured []byte

// Measured returns the content of measured.json.
func Measured() (Measurement, error) {
	var m Measurement
	err := json.Unmarshal(measured, &m)
	return m, err
}

var made = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// Make returns the file. It waits for the time at which the vectors are to be judged, which takes no time in a
// synctest bubble.
func Make() ([]byte, error) {
	time.Sleep(time.Until(made))
	m, err := Measured()
	if err != nil {
		return nil, err
	}
	f := File{
		Schema: "ocsp.schema.json",
		About:  "OCSP responses that a verifier must accept or refuse; see README.md. Made by: go generate ./internal/vectors",
	}
	for _, name := range Names {
		v := Verifier{Name: name, Program: "its library, with a few of the vectors"}
		for _, known := range m.Verifiers {
			if known.Name == name {
				v = known
			}
		}
		f.Verifiers = append(f.Verifiers, v)
	}
	for _, g := range []struct {
		name      string
		keyType   stapletest.KeyType
		forgeries bool
	}{
		{"P-256", stapletest.ECDSAP256, true},
		{"RSA-2048", stapletest.RSA2048, false},
	} {
		group, err := makeGroup(g.name, g.keyType, g.forgeries)
		if err != nil {
			return nil, err
		}
		for i := range group.Vectors {
			v := &group.Vectors[i]
			v.Others = map[string]string{}
			for _, name := range Names {
				v.Others[name] = cmp.Or(m.Results[g.name][v.Name][name], seen[v.Name][name], Unknown)
			}
		}
		f.Groups = append(f.Groups, group)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	err = e.Encode(f)
	return b.Bytes(), err
}

func makeGroup(name string, keyType stapletest.KeyType, forgeries bool) (Group, error) {
	ca := stapletest.NewCA(stapletest.CAOptions{KeyType: keyType, Intermediate: true, Seed: "vectors " + name})
	secret := sha256.Sum256([]byte("the leaf of " + name))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), secret[:])
	if err != nil {
		return Group{}, err
	}
	leafKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Group{}, err
	}
	leaf := ca.Leaf(stapletest.LeafOptions{Key: key, MustStaple: true}).Leaf
	g := Group{
		Name: name, Time: time.Now().UTC(),
		Root: ca.Root.Raw, Issuer: ca.Issuer.Raw, Leaf: leaf.Raw, LeafKey: leafKey,
	}
	add := func(c stapletest.Case, v Vector) {
		v.Name, v.Why, v.Response = c.Name, c.Why, c.DER
		v.RFC = sections(c.Why)
		if v.Response == nil {
			v.Response = []byte{}
		}
		g.Vectors = append(g.Vectors, v)
	}
	for _, c := range stapletest.Oddities(ca, leaf) {
		add(c, Vector{Verdict: Accept, Status: Status(c.Status)})
	}
	if forgeries {
		reasons := scene.Reasons()
		for _, c := range stapletest.Forgeries(ca, leaf) {
			add(c, Vector{Verdict: Refuse, Reason: cmp.Or(reasons[c.Name], "malformed")})
		}
	}
	return g, nil
}

// Status returns the word for ocsp.Good, ocsp.Revoked or ocsp.Unknown.
func Status(status int) string {
	return map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}[status]
}

var section = regexp.MustCompile(`(RFC \d+)?((?:,? s\d+(?:\.\d+)*(?: \(\d+\))?)*)`)

// sections returns what of RFCs why names, such as "RFC 6960 s4.2.2.2" and "RFC 6960 s3.2 (1)".
func sections(why string) []string {
	all := []string{}
	for _, match := range section.FindAllStringSubmatch(why, -1) {
		if match[1] == "" {
			continue
		}
		parts := regexp.MustCompile(`s\d[^,]*`).FindAllString(match[2], -1)
		if len(parts) == 0 {
			all = append(all, match[1])
		}
		for _, part := range parts {
			all = append(all, match[1]+" "+part)
		}
	}
	return all
}

// Read reads the file of that name.
func Read(name string) (*File, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	f := new(File)
	if err := json.Unmarshal(data, f); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}
