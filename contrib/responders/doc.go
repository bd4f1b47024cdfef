// Package responders has tests only. They let a Stapler ask responders that people
// run, beyond those that need nothing but package staple's own tests: the server of
// the npm package ocsp, which needs Node.js and
//
//	npm install -g ocsp@1.2.0
//
// They also let a Checker ask openssl ocsp and cfssl ocspserve (Debian's golang-cfssl)
// about clients.
package responders
