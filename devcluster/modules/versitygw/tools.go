//go:build tools

// Package versitygw pins the commands that this module builds.
package versitygw

import (
	_ "github.com/versity/versitygw/cmd/versitygw"
)
