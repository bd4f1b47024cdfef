module github.com/go-staple/staple/contrib/verifiers

go 1.26.0

replace github.com/go-staple/staple => ../../

require (
	github.com/go-staple/staple v0.0.0
	github.com/stretchr/testify v1.12.1
)

require (
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/crypto v0.58.0 // indirect
)
