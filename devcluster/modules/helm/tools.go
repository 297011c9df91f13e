//go:build tools

// Package helm pins the commands that this module builds.
package helm

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
