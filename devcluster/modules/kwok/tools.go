//go:build tools

// Package kwok pins the commands that this module builds.
package kwok

import (
	_ "sigs.k8s.io/kwok/cmd/kwok"
)
