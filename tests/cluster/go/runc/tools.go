//go:build tools

// Package tools names the programs that tests/cluster builds, so that go.sum covers them.
package tools

import (
	_ "github.com/opencontainers/runc"
)
