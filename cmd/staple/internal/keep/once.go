package keep

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-staple/staple"
	"github.com/go-staple/staple/cmd/staple/internal/verdict"
	"github.com/go-staple/staple/internal/name"
	"github.com/go-staple/staple/internal/ocspder"
	"github.com/go-staple/staple/internal/wall"
	"golang.org/x/crypto/ocsp"
)

// onceFor is how long -once waits for responders at most.
const onceFor = 5 * time.Minute

// runOnce does what is due, and returns the exit code.
func (k *keeper) runOnce(ctx context.Context, stdout io.Writer) (exit int) {
	k.look(ctx, false)
	limit, cancel := context.WithTimeout(ctx, onceFor)
	defer cancel()
	_ = k.stapler.Wait(limit) // each file's line says what is missing
	for _, files := range k.keeping {
		for _, f := range files {
			f.grace = time.Time{}
			k.settle(f)
		}
	}
	if k.socket != nil && !k.socket.flush(ctx) {
		exit = soon
	}
	if k.runner != nil && !k.runner.flush(ctx) {
		exit = soon
	}
	for _, d := range k.folders {
		if d.err != "" {
			exit = verdict.Worse(exit, untold)
		}
	}
	for path, d := range k.folders {
		if d.err == "" && !slices.ContainsFunc(d.names, func(n string) bool {
			f := k.files[filepath.Join(path, n)]
			return f != nil && (f.cert != nil || f.err != nil)
		}) {
			k.log.Warn("there is no chain in this folder: give the one with the PEM files", "folder", path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(k.files)) {
		f := k.files[path]
		if f.cert == nil && f.err == nil {
			continue // a key, a CA, or something else
		}
		o := k.judge(f)
		exit = verdict.Worse(exit, o.Exit)
		if k.json {
			_ = json.NewEncoder(stdout).Encode(o)
		}
		if o.Exit != well {
			k.log.Warn(o.Verdict, "file", f.name, "error", o.Error)
		}
	}
	return exit
}

// judge says how f stands.
func (k *keeper) judge(f *file) (o verdict.Object) {
	o = verdict.Object{Target: f.name}
	if f.cert == nil {
		o.Verdict, o.Error, o.Exit = "invalid", nameless(f.err).Error(), untold
		return o
	}
	st := f.cert.Status()
	now := wall.Now()
	subject, serial := name.Parts(st.Leaf)
	o.Name, o.Serial = subject, strings.ReplaceAll(serial, ":", "")
	o.MustStaple, o.Responder = st.MustStaple, st.Responder
	o.Stapled = st.Stapled && f.failed == nil
	if !st.ThisUpdate.IsZero() {
		o.Status = map[bool]string{false: "good", true: "revoked"}[st.Revoked]
		o.ThisUpdate, o.Expires = name.Time(st.ThisUpdate), name.Time(st.Expires)
	}
	if r, err := ocsp.ParseResponse(f.cert.Response(), nil); err == nil && !r.NextUpdate.IsZero() {
		o.NextUpdate = name.Time(r.NextUpdate)
	}
	lacks := soon
	if st.MustStaple {
		lacks = broken
	}
	nobody := errors.Is(st.Err, staple.ErrNoResponder)
	switch {
	case st.Revoked:
		o.Verdict, o.Exit = "revoked", broken
		o.Reason = name.Reason(st.RevocationReason)
		o.Error = "the certificate is revoked (" + o.Reason + "), and has no response: replace it"
	case f.failed != nil && st.Stapled:
		o.Verdict, o.Exit = "trouble", lacks
		if now.Before(ocspder.ClaimedEnd(f.there.der, f.leaf, time.Hour)) {
			o.Exit = soon // an earlier one lies there
		}
		o.Error = "the response cannot be written: " + f.failed.Error()
	case f.failed != nil:
		o.Verdict, o.Exit = "trouble", lacks
		o.Error = "a response that is good no more cannot be removed: " + f.failed.Error()
	case st.State == staple.StateExpired:
		o.Verdict, o.Exit = "expired", soon
		o.Error = "the certificate has expired at " + name.Time(st.Leaf.NotAfter) + ": replace it"
	case !st.Stapled && nobody && !st.MustStaple:
		o.Verdict = "no-responder"
	case !st.Stapled:
		o.Verdict, o.Exit = "missing", lacks
		o.Error = cmp.Or(text(st.Err), "nobody has answered yet")
	case st.Err != nil && !nobody:
		o.Verdict, o.Exit = "trouble", soon
		o.Error = "not renewed, and good until " + o.Expires + ": " + text(st.Err)
	case st.Expires.Sub(now) < st.Expires.Sub(st.ThisUpdate)/4:
		o.Verdict, o.Exit = "expiring", soon
		o.Error = "it ends at " + o.Expires + ", and the responder has nothing newer yet"
	default:
		o.Verdict = "good"
	}
	if o.MustStaple && o.Exit == broken && !st.Revoked {
		o.Error = "Must-Staple without a response: " + o.Error
	}
	var refused *staple.VerifyError
	if errors.As(st.Err, &refused) && o.Reason == "" {
		o.Reason = refused.Reason.String()
	}
	return o
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf("%.1000s", err.Error())
}
