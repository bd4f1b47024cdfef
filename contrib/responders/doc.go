// Package responders has tests only. They let a Stapler ask responders that people
// run, beyond openssl's and CFSSL's, with which the tests of package staple deal:
//
//   - the PKI secrets engine of HashiCorp Vault 1.14, from which OpenBao's descends
//   - the server of the npm package ocsp, which needs Node.js and
//     npm install -g ocsp@1.2.0
package responders
