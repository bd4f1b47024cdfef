package hold

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-staple/staple/internal/race"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"
)

const minute = int64(time.Minute / time.Microsecond)

// good returns a response whose thisUpdate is at, in minutes, and that is valid for a day.
func good(at int64) *Response {
	return &Response{ThisUpdate: at * minute, ProducedAt: at * minute, Until: (at + 1440) * minute, End: (at + 1440) * minute}
}

func revoked(at int64, reason int8) *Response {
	r := good(at)
	r.Revoked, r.Reason = true, reason
	return r
}

func TestNewerIsLaterThisUpdateThenProducedAtThenEndAndRevokedWinsATie(t *testing.T) {
	base := &Response{ThisUpdate: 10, ProducedAt: 10, End: 10}
	for _, tt := range []struct {
		name string
		r    *Response
		want bool
	}{
		{"the same", &Response{ThisUpdate: 10, ProducedAt: 10, End: 10}, false},
		{"later thisUpdate, earlier end", &Response{ThisUpdate: 11, ProducedAt: 1, End: 1}, true},
		{"earlier thisUpdate, later end", &Response{ThisUpdate: 9, ProducedAt: 11, End: 20}, false},
		{"later producedAt", &Response{ThisUpdate: 10, ProducedAt: 11, End: 1}, true},
		{"later end", &Response{ThisUpdate: 10, ProducedAt: 10, End: 11}, true},
		{"revoked", &Response{ThisUpdate: 10, ProducedAt: 10, End: 10, Revoked: true}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, tt.r.Newer(base))
			require.Equal(t, tt.name == "the same", tt.r.Same(base))
			if tt.want {
				require.False(t, base.Newer(tt.r))
			}
		})
	}
}

func TestState(t *testing.T) {
	const day = 1440
	type offer struct {
		at   int64 // in minutes
		r    *Response
		held bool // it is held from now on
	}
	const hold = ocsp.CertificateHold
	for name, offers := range map[string][]offer{
		"what is newer is taken, what is older or the same is not": {
			{0, good(0), true}, {60, good(60), true}, {70, good(60), false}, {80, good(30), false}},
		"an older good one is taken when the newer one has ended": {
			{0, good(0), true}, {60, &Response{ThisUpdate: -60 * minute, End: 2 * day * minute}, false},
			{day, &Response{ThisUpdate: -60 * minute, End: 2 * day * minute}, true}},
		"an older revoked one is not, then": {
			{0, good(0), true}, {day, &Response{ThisUpdate: -60 * minute, End: 2 * day * minute, Revoked: true}, false}},
		"nor an older good one after a revoked one": {
			{0, revoked(0, ocsp.KeyCompromise), true}, {day, &Response{ThisUpdate: -60 * minute, End: 2 * day * minute}, false}},
		"a hold is lifted at once": {
			{0, good(0), true}, {10, revoked(10, hold), true}, {11, good(11), true}},
		"also when it has ended": {
			{0, revoked(0, hold), true}, {2 * day, good(2 * day), true}},
		"a revocation yields to two different good responses half an hour apart": {
			{0, revoked(0, ocsp.Unspecified), true}, {60, good(60), false}, {90, good(90), true}},
		"not to two that came sooner": {
			{0, revoked(0, ocsp.Unspecified), true}, {60, good(60), false}, {89, good(89), false}, {90, good(90), true}},
		"not to the same twice": {
			{0, revoked(0, ocsp.Unspecified), true}, {60, good(60), false}, {120, good(60), false}, {180, good(180), true}},
		"but to the first again after another one": {
			{0, revoked(0, ocsp.Unspecified), true}, {60, good(60), false}, {70, good(70), false}, {95, good(60), false}, {100, good(60), true}},
		"not to one that is older than it": {
			{100, revoked(100, ocsp.Unspecified), true}, {160, good(60), false}, {220, good(220), false}, {250, good(99), false}, {260, good(260), true}},
		"the same revocation between begins anew": {
			{0, revoked(0, ocsp.Unspecified), true}, {60, good(60), false}, {70, revoked(0, ocsp.Unspecified), false},
			{100, good(100), false}, {130, good(130), true}},
		"an older revocation between does, too": {
			{10, revoked(10, ocsp.Unspecified), true}, {60, good(60), false}, {70, revoked(0, ocsp.Unspecified), false},
			{100, good(100), false}, {130, good(130), true}},
		"and a newer one": {
			{0, revoked(0, ocsp.Unspecified), true}, {60, good(60), false}, {70, revoked(70, ocsp.Unspecified), true},
			{100, good(100), false}, {130, good(130), true}},
		"a hold after a revocation for good lifts nothing": {
			{0, revoked(0, ocsp.KeyCompromise), true}, {60, revoked(60, hold), true}, {70, good(70), false}, {80, revoked(60, hold), false},
			{90, good(90), false}, {120, good(120), true}},
		"it outlasts its response": {
			{0, revoked(0, ocsp.Unspecified), true}, {9 * day, good(9 * day), false}, {9*day + 60, good(9*day + 60), true}},
		"what is reinstated may be revoked again": {
			{0, revoked(0, ocsp.Unspecified), true}, {60, good(60), false}, {90, good(90), true}, {100, revoked(100, hold), true}, {101, good(101), true}},
		"a clock that is set back costs half an hour at most": {
			{0, revoked(0, ocsp.Unspecified), true}, {9000, good(60), false}, {100, good(100), false}, {130, good(130), true}},
	} {
		t.Run(name, func(t *testing.T) {
			var s State
			for i, o := range offers {
				require.Equal(t, o.held, s.Offer(o.r, o.at*minute), "offer %d", i)
				require.Equal(t, o.held, s.Held() == o.r)
				require.Equal(t, s.Held().Revoked, s.Revoked())
			}
			s.Drop()
			require.Nil(t, s.Held())
			require.False(t, s.Revoked())
		})
	}
}

// A naive state remembers all that came, and reads the rules off that.
type naive struct {
	held    *Response
	lasting bool // since the last good one was held, a revocation came that is no hold
	goods   []naiveGood
}

type naiveGood struct {
	*Response
	at int64
}

func (n *naive) offer(r *Response, now int64) bool {
	take := n.held == nil || r.Newer(n.held)
	switch {
	case n.held == nil:
	case r.Revoked:
		if n.held.Revoked {
			n.goods = nil
		}
	case !n.held.Revoked:
		take = take || now >= n.held.End && now < r.End
	case !take:
	case n.lasting:
		take = false
		for i := range n.goods {
			g := &n.goods[i]
			g.at = min(g.at, now)
			take = take || now-g.at >= 30*minute && (g.ThisUpdate != r.ThisUpdate || g.ProducedAt != r.ProducedAt || g.End != r.End)
		}
		n.goods = append(n.goods, naiveGood{r, now})
	}
	if take {
		n.held, n.goods = r, nil
		n.lasting = r.Revoked && (n.lasting || r.Reason != 6)
	}
	return take
}

func TestStateDoesWhatANaiveOneDoes(t *testing.T) {
	seeds := uint64(20000)
	if race.Enabled {
		seeds /= 5
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 0))
		var s State
		var n naive
		now := int64(1000)
		trace := ""
		for range 5 + r.IntN(30) {
			if now += r.Int64N(20); r.IntN(20) == 0 {
				now -= r.Int64N(100)
			}
			o := good(now - r.Int64N(30))
			o.End = o.ThisUpdate + (1+r.Int64N(100))*minute
			if o.Revoked = r.IntN(3) == 0; o.Revoked {
				o.Reason = []int8{ocsp.Unspecified, ocsp.KeyCompromise, ocsp.CertificateHold, ocsp.CertificateHold}[r.IntN(4)]
			} else if s.Revoked() && r.IntN(3) > 0 { // enough of them
				o = good(s.Held().ThisUpdate/minute + r.Int64N(3))
			}
			trace += fmt.Sprintf("%d: %d to %d, revoked %v %d\n", now, o.ThisUpdate/minute, o.End/minute, o.Revoked, o.Reason)
			require.Equal(t, n.offer(o, now*minute), s.Offer(o, now*minute), "seed %d\n%s", seed, trace)
			require.Same(t, n.held, s.Held(), "seed %d\n%s", seed, trace)
		}
	}
}

func TestAResponseIsKnownByWhatItWasTakenFrom(t *testing.T) {
	r := &Response{DER: []byte("trimmed")}
	require.True(t, r.Is([]byte("trimmed")))
	require.False(t, r.Is([]byte("as it came")))
	r.Taken([]byte("as it came"))
	require.True(t, r.Is([]byte("as it came")))
	require.True(t, r.Is([]byte("trimmed")))
	again := &Response{DER: []byte("trimmed again")}
	again.TakenAs(r)
	require.True(t, again.Is([]byte("as it came")))
}
