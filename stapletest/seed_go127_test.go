//go:build go1.27

package stapletest_test

import "github.com/go-staple/staple/stapletest"

func init() { mldsaKeyTypes = []stapletest.KeyType{stapletest.MLDSA44, stapletest.MLDSA87} }
