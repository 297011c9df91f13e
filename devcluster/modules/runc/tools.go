//go:build tools

// Package runc pins the commands that this module builds.
package runc

import (
	_ "github.com/opencontainers/runc"
)
