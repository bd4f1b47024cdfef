// A responder of the npm package ocsp: node responder.js PORT CERT KEY, where the certificate and the key
// are the CA's, in PEM. It knows the serial numbers that come on its standard input, one "SERIAL STATUS" a
// line, and says "ok" to each line.
const fs = require('fs')
const readline = require('readline')
const ocsp = require('ocsp')

const [port, cert, key] = process.argv.slice(2)
const server = ocsp.Server.create({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) })
server.listen(Number(port), '127.0.0.1', () => {
  const lines = readline.createInterface({ input: process.stdin })
  lines.on('line', line => {
    const [serial, status] = line.split(' ')
    const info = { revocationTime: new Date(), revocationReason: 'keyCompromise' }
    server.addCert(serial, status, status === 'revoked' ? info : undefined)
    console.log('ok')
  })
  lines.on('close', () => process.exit())
})
