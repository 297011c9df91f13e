//go:build tools

// Package coredns pins the commands that this module builds.
package coredns

import (
	_ "github.com/coredns/coredns"
)
