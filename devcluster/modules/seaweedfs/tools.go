//go:build tools

// Package seaweedfs pins the commands that this module builds.
package seaweedfs

import (
	_ "github.com/seaweedfs/seaweedfs/weed"
)
