package fault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/ask"
	"github.com/go-staple/staple/internal/exchange"
	"github.com/go-staple/staple/internal/schedule"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

// An httpError tells of one URL.
type httpError Told

func (e *httpError) Error() string { return fmt.Sprintf("%s: %v", e.URL, e.Err) }

func (e *httpError) Unwrap() error { return e.Err }

// A refusal comes of whoever judges responses.
type refusal struct{ error }

func (e *refusal) Unwrap() error { return e.error }

var errRefused = errors.New("refused")

var reader = Reader{
	Of: func(err error) (t Told, ok bool) {
		e, ok := err.(*httpError)
		if ok {
			t = Told(*e)
		}
		return t, ok
	},
	Refuses: func(err error) bool {
		_, ok := err.(*refusal)
		return ok || err == errRefused
	},
}

func TestFaultsOfSomebodyElsesErrors(t *testing.T) {
	status := func(s ocsp.ResponseStatus) error { return fmt.Errorf("GET: %w", ocsp.ResponseError{Status: s}) }
	refused := &refusal{errors.New("forged")}
	for _, tt := range []struct {
		name string
		err  httpError
		want schedule.Fault
	}{
		{"no connection", httpError{Err: io.EOF}, schedule.Host},
		{"nothing at all", httpError{}, schedule.Host},
		{"the time was up", httpError{Err: context.DeadlineExceeded}, schedule.Host},
		{"the caller gave up", httpError{Err: fmt.Errorf("GET: %w", context.Canceled)}, schedule.NoFault},
		{"the caller gave up after an answer", httpError{Status: 404, Err: errors.Join(io.EOF, context.Canceled)}, schedule.NoFault},

		{"429", httpError{Status: 429}, schedule.URL},
		{"429 with an OCSP status", httpError{Status: 429, Err: status(ocsp.Unauthorized)}, schedule.URL},
		{"503 with Retry-After", httpError{Status: 503, RetryAfter: time.Second}, schedule.URL},
		{"503 with Retry-After and tryLater", httpError{Status: 503, RetryAfter: time.Second, Err: status(ocsp.TryLater)}, schedule.URL},

		{"503", httpError{Status: 503}, schedule.CA},
		{"500", httpError{Status: 500, Err: errors.New("GET: 500 Internal Server Error")}, schedule.CA},
		{"500 with Retry-After", httpError{Status: 500, RetryAfter: time.Second}, schedule.CA},
		{"599", httpError{Status: 599}, schedule.CA},
		{"tryLater", httpError{Status: 200, Err: status(ocsp.TryLater)}, schedule.CA},
		{"internalError", httpError{Status: 200, Err: status(ocsp.InternalError)}, schedule.CA},
		{"tryLater without a status", httpError{Err: status(ocsp.TryLater)}, schedule.CA},
		{"tryLater, refused by a Verifier", httpError{Status: 200, Err: &refusal{status(ocsp.TryLater)}}, schedule.CA},
		{"404 with internalError", httpError{Status: 404, Err: status(ocsp.InternalError)}, schedule.CA},
		{"a web page", httpError{Status: 200, Err: fmt.Errorf("GET: %w: a page", exchange.ErrUnusable)}, schedule.CA},
		{"a body cut short", httpError{Status: 200, Err: io.ErrUnexpectedEOF}, schedule.CA},
		{"200, and no word more", httpError{Status: 200}, schedule.CA},
		{"204", httpError{Status: 204}, schedule.CA},
		{"304", httpError{Status: 304, Err: io.EOF}, schedule.CA},
		{"101", httpError{Status: 101}, schedule.CA},

		{"400", httpError{Status: 400}, schedule.Certificate},
		{"404 with Retry-After", httpError{Status: 404, RetryAfter: time.Second}, schedule.Certificate},
		{"unauthorized", httpError{Status: 200, Err: status(ocsp.Unauthorized)}, schedule.Certificate},
		{"malformedRequest", httpError{Status: 200, Err: status(ocsp.Malformed)}, schedule.Certificate},
		{"sigRequired", httpError{Status: 200, Err: status(ocsp.SignatureRequired)}, schedule.Certificate},
		{"500 with unauthorized", httpError{Status: 500, Err: status(ocsp.Unauthorized)}, schedule.Certificate},
		{"refused", httpError{Status: 200, Err: fmt.Errorf("GET: %w", refused)}, schedule.Certificate},
		{"refused, without a status", httpError{Err: refused}, schedule.Certificate},
		{"refused by another word", httpError{Status: 200, Err: fmt.Errorf("GET: %w", errRefused)}, schedule.Certificate},

		{"tryLater, then unauthorized", httpError{Status: 200, Err: errors.Join(status(ocsp.TryLater), status(ocsp.Unauthorized))}, schedule.Certificate},
		{"unauthorized, then tryLater", httpError{Status: 200, Err: errors.Join(status(ocsp.Unauthorized), status(ocsp.TryLater))}, schedule.CA},
		{"a web page, then refused", httpError{Status: 200, Err: fmt.Errorf("%w; %w", exchange.ErrUnusable, refused)}, schedule.Certificate},
		{"refused, then a web page", httpError{Status: 200, Err: fmt.Errorf("%w; %w", refused, exchange.ErrUnusable)}, schedule.CA},
		{"refused, then 500", httpError{Status: 500, Err: fmt.Errorf("%w; %w", refused, io.EOF)}, schedule.CA},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.err.URL = "http://a.example"
			want := answerOf(&tt.err, tt.want)
			require.Equal(t, []schedule.Answer{want}, reader.Answers(&tt.err))
		})
	}
}

func answerOf(e *httpError, f schedule.Fault) schedule.Answer {
	busy := e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable
	return schedule.Answer{Source: schedule.SourceOf(e.URL), Fault: f, RetryAfter: e.RetryAfter, Busy: busy, Err: e}
}

func TestAnswers(t *testing.T) {
	a := &httpError{URL: "a", Status: 500}
	b := &httpError{URL: "b", Status: 429, RetryAfter: time.Minute}
	both := []schedule.Answer{answerOf(a, schedule.CA), answerOf(b, schedule.URL)}
	require.Nil(t, reader.Answers(nil))
	require.Nil(t, reader.Answers(io.EOF))
	require.Nil(t, reader.Answers(&refusal{ocsp.ResponseError{Status: ocsp.TryLater}}))
	require.Equal(t, both[:1], reader.Answers(a))
	require.Equal(t, both, reader.Answers(errors.Join(a, io.EOF, b)))
	require.Equal(t, both, reader.Answers(fmt.Errorf("about %s: %w, %w", "a leaf", fmt.Errorf("one: %w", a), errors.Join(io.EOF, b))))
	require.Equal(t, []schedule.Answer{answerOf(b, schedule.URL), answerOf(a, schedule.CA)}, reader.Answers(errors.Join(b, a)))
	require.Equal(t, append(both, both...), reader.Answers(errors.Join(a, b, a, b)))

	t.Run("one inside another is about the same URL", func(t *testing.T) {
		outer := &httpError{URL: "mine", Status: 404, Err: errors.Join(a, b)}
		require.Equal(t, []schedule.Answer{answerOf(outer, schedule.Certificate)}, reader.Answers(fmt.Errorf("x: %w", outer)))
	})
	t.Run("a copy under another name knows what the original does", func(t *testing.T) {
		original := &httpError{URL: "a", Status: 404, Err: io.EOF, Fault: schedule.Host}
		renamed := &httpError{URL: "b", Status: 404, Err: original}
		require.Equal(t, []schedule.Answer{answerOf(renamed, schedule.Host)}, reader.Answers(renamed))
		unasked := &httpError{URL: "b", Err: &httpError{URL: "a", Err: io.EOF, Fault: Unasked}}
		require.Equal(t, []schedule.Answer{answerOf(unasked, schedule.NoFault)}, reader.Answers(unasked))
	})
}

func TestRetryAfterIsTheLongestAnywhereInTheTree(t *testing.T) {
	inner := &httpError{RetryAfter: time.Hour, Err: io.EOF}
	outer := &httpError{RetryAfter: time.Minute, Err: fmt.Errorf("GET: %w", inner)}
	require.Zero(t, reader.RetryAfter(nil))
	require.Zero(t, reader.RetryAfter(io.EOF))
	require.Equal(t, time.Hour, reader.RetryAfter(errors.Join(io.EOF, outer)))
	require.Equal(t, time.Hour, reader.RetryAfter(errors.Join(inner, &httpError{RetryAfter: time.Second})))
}

func TestTheFaultOfAnAttemptGoesByHowFarItGot(t *testing.T) {
	for stage, want := range map[ask.Stage]schedule.Fault{
		ask.Unasked: Unasked, ask.Silent: schedule.Host, ask.Answered: schedule.CA, ask.Refused: schedule.Certificate,
	} {
		require.Equal(t, want, reader.Attempt(ask.Attempt{Stage: stage, Err: io.EOF}))
	}
	require.Equal(t, schedule.Certificate, reader.Attempt(ask.Attempt{Stage: ask.Answered, Status: 404, Err: io.EOF}))
	require.Equal(t, schedule.URL, reader.Attempt(ask.Attempt{Stage: ask.Answered, Status: 503, RetryAfter: time.Second, Err: io.EOF}))
}
