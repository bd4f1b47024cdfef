module github.com/go-staple/staple/contrib/responders

go 1.26.0

require (
	github.com/go-staple/staple v0.0.0
	github.com/stretchr/testify v1.12.1
)

replace github.com/go-staple/staple => ../../
