// Package whole tests package staple as a whole, through what it exports, in all weathers:
//
//	year*          a simulated year of outages, garbage, revocations, restarts, a clock that is set and a failing disk, what
//	               is promised in it, and its table
//	month          a month of thousands of certificates at hosts that fail, a quarter of them in each way
//	load           thousands of certificates that came together, and how often responders are asked
//	outage, hosts  responders that fail, hang, ask for patience, and come back
//	blip           how long after an outage staples are there, and its table; crowds of certificates and of dead hosts
//	weather        what holds up whom, and successors that come at the last moment or later
//	clock          a wall clock that is set, and a machine that slept
//	fleet          processes that share a cache, with a lock and without
//	cache          caches that fail, hang, are slow, or full
//	hang           a cache that answers nothing, is passed by, and works again; what is deleted from it
//	recovers       how soon the log says that a cache works again
//	night          the log of a night, which is in docs/operations.md
//	rogue, blocked what Staplers call that panics, ends the goroutine, blocks, or uses its memory again
//	issuer*        chains that lack the issuer, and hosts that should have it and fail
//	missed         what was missed at first: answers that contradict each other, clocks, locks, reloads
//	restart        more certificates at a start than the cache tells about before TLSConfig returns
//	dircache, crash, processes
//	               real processes on one DirCache, many of which are killed
//	selection      which certificate is served while others come and go, at what cost, and if its staple ends meanwhile
//	many           certificates without end: what they leave in memory, and goroutines
//	checker, peers peers that are refused or not, and what bounds what they cost
//	files*         certificates in files that somebody else renews, half writes, breaks and removes, and when successors serve
//	vectors        what testdata/vectors tells others to say of a response
//	siege          certificates that tenants bring, made to hold up those of others
//	fetch*         responders of CFSSL and OpenSSL; nginx and tinyproxy between a responder and the HTTPFetcher
//	listener, openssl, close, fips
//	               real sockets, openssl as CA, responder and client, what is left after Close, and FIPS 140-only mode
//
// Most of it is a sample of what it can be. For more:
//
//	STAPLE_YEAR=1 go test ./internal/whole -v -timeout 0 -run '^TestAYear' # twenty years in place of twice 45 days
//	STAPLE_MONTH=1 go test ./internal/whole -v -timeout 0 -run '^TestAMonth' # of 10,000 certificates, not three days of 1,000
//	STAPLE_HOSTS=10000 go test ./internal/whole -v -timeout 0 -run DeadHosts # and 20,000
//	go test ./internal/whole -run '^TestAMillion' -exhaustive # a million certificates in place of 30,000
//	go test ./internal/whole -run '^(TestTenThousand|TestBlip)' -exhaustive # as many, in place of half
//
// The flags must come after the package's path. With -short or -race the year is ten days, and there are
// fewer certificates. STAPLE_REQUIRE_PEERS=1 makes tests fail that lack a
// program, which are skipped otherwise.
//
// These tests stand apart because they take long, and because they may know nothing of how the Stapler is made:
// whatever is behind its methods, they stay as they are. Where one needs a number that has no name outside, it says
// where that comes from. What these tests have in common with those of the root is in internal/world; what is about one
// method or field stands beside it in the root.
package whole
