//go:build race

package statuspage

const many = 20_000
