// Command coredns is CoreDNS with only the plugins that the test cluster's Corefile names: the
// stock program links every cloud's client and takes four times as long to build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/reload"
)

// The order is CoreDNS's own (plugin.cfg): it is the order in which a query meets the plugins.
func init() {
	dnsserver.Directives = []string{
		"reload", "bind", "health", "errors", "cache", "kubernetes", "forward",
	}
}

func main() {
	coremain.Run()
}
