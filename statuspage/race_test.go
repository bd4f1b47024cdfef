//go:build race

package statuspage

const many = 5_000
