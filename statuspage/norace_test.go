//go:build !race

package statuspage

const many = 100_000
