//go:build tools

// Package dra pins the commands that this module builds.
package dra

import (
	_ "sigs.k8s.io/dra-example-driver/cmd/dra-example-kubeletplugin"
)
