package cli

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"path"
	"strings"
	"testing"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/loadbalancer"
	"kuorum/internal/pki"
)

// TestBalancersKnowAPIServers: by the name that balancers ask for they know an API
// server, and take no other program of the cluster for one; and its certificate names
// the address at which clients find the balancer.
func TestBalancersKnowAPIServers(t *testing.T) {
	spec := &cluster.Spec{Spec: cluster.Body{Servers: 2, Workers: 1, Endpoint: cluster.Endpoint{Type: cluster.EndpointAddress, Address: "192.0.2.10:8443"}}}
	spec.Default()
	if err := spec.Validate(); err != nil {
		t.Fatal(err)
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	servers := 0
	for _, n := range spec.Spec.Nodes {
		files, err := set.NodeFiles(spec, n, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			block, _ := pem.Decode(f.Data)
			if path.Ext(f.Path) != ".crt" || block == nil {
				continue
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			named, isServer := cert.VerifyHostname(loadbalancer.APIName) == nil, f.Path == "pki/apiserver.crt"
			if named != isServer {
				t.Errorf("%s of %s is taken for an API server's: %t", f.Path, n.Name, named)
			}
			if !isServer {
				continue
			}
			servers++
			if err := cert.VerifyHostname("192.0.2.10"); err != nil {
				t.Error(err)
			}
		}
	}
	if servers != 2 {
		t.Errorf("%d certificates of API servers were looked at", servers)
	}
	plan, err := foreignBalancer{}.plan(spec)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Listen != netip.MustParseAddrPort("0.0.0.0:8443") || plan.Router.Address.String() != "192.0.2.10" {
		t.Errorf("clients are expected at %s, and at %s", plan.Listen, plan.Router.Address)
	}
}

// TestBalancerOfAName: a name is no virtual IP, and its port is where clients come.
func TestBalancerOfAName(t *testing.T) {
	for address, port := range map[string]uint16{"api.example.org": 6443, "api.example.org:443": 443} {
		spec := &cluster.Spec{Spec: cluster.Body{Endpoint: cluster.Endpoint{Type: cluster.EndpointAddress, Address: address}}}
		spec.Default()
		plan, err := foreignBalancer{}.plan(spec)
		if err != nil {
			t.Fatal(err)
		}
		if plan.Listen.Port() != port || plan.Router.Address.IsValid() {
			t.Errorf("%s: clients are expected at %s, and at %s", address, plan.Listen, plan.Router.Address)
		}
		if _, err := loadbalancer.Render(plan, loadbalancer.Keepalived); err == nil || !strings.Contains(err.Error(), "--address") {
			t.Errorf("%s: got %v", address, err)
		}
	}
}
