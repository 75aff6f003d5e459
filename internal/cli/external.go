package cli

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/doctor"
	"kuorum/internal/lab"
	"kuorum/internal/pki"
)

// takeEtcdFiles reads the files that a new cluster shows to an etcd which somebody
// else runs, and returns the spec without their paths: from then on what they hold
// is among the cluster's secrets. A lab that exists has it already, and needs no
// files. file is the cluster.yaml, to which paths are relative.
func takeEtcdFiles(store lab.Store, file string, spec *cluster.Spec, now time.Time) (*cluster.Spec, *pki.ExternalEtcd, error) {
	if !spec.EtcdExternal() {
		return spec, nil, nil
	}
	e, kept := spec.Spec.Etcd.External, spec.WithoutEtcdFiles()
	if _, err := store.Open(spec.Metadata.Name); err == nil {
		return kept, nil, nil
	}
	if !e.NamesFiles() {
		return nil, nil, &cluster.Problem{
			What: file + " names no files for etcd", Why: "a new cluster has nothing to show to an etcd that somebody else runs",
			Do: "name ca, certificate and key in spec.etcd.external", Exit: cluster.ExitUsage,
		}
	}
	var data [3][]byte
	for i, path := range []string{e.CA, e.Certificate, e.Key} {
		if !filepath.IsAbs(path) && file != "-" {
			path = filepath.Join(filepath.Dir(file), path)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, &cluster.Problem{
				What: fmt.Sprintf("cannot read spec.etcd.external.%s of %s", []string{"ca", "certificate", "key"}[i], file), Err: err,
				Do: "correct the path, which is relative to that file, and run the command again", Exit: cluster.ExitUsage,
			}
		}
		data[i] = content
	}
	external, err := pki.NewExternalEtcd(data[0], data[1], data[2], now)
	if err != nil {
		return nil, nil, &cluster.Problem{
			What: "etcd cannot be asked with the files that " + file + " names", Why: err.Error(),
			Do: "ask those who run etcd for an authority, a client's certificate and its key, all PEM", Exit: cluster.ExitUsage,
		}
	}
	return kept, external, nil
}

// refuseTheirs is the answer to a verb that would change an etcd which somebody
// else runs.
func refuseTheirs(spec *cluster.Spec, ask string) error {
	return &cluster.Problem{
		What: "this etcd is run by somebody else: kuorum changes nothing of it",
		Why:  "spec.etcd.external of cluster " + spec.Metadata.Name + " has its endpoints: " + strings.Join(spec.Spec.Etcd.External.Endpoints, ", "),
		Do:   "ask those who run it to " + ask, Exit: cluster.ExitRefused,
	}
}

// insideLab tells whether an endpoint of an etcd that somebody else runs is in the
// network of the lab, which the host itself does not reach.
func insideLab(spec *cluster.Spec) bool {
	network, err := netip.ParsePrefix(spec.Spec.Network.Nodes)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(spec.Spec.Etcd.External.Endpoints, func(endpoint string) bool {
		address, err := netip.ParseAddrPort(strings.TrimPrefix(endpoint, "https://"))
		return err == nil && network.Contains(address.Addr())
	})
}

// measureEndpoints is the ways to an etcd that somebody else runs.
func measureEndpoints(ctx context.Context, spec *cluster.Spec) []doctor.Way {
	var ways []doctor.Way
	for _, endpoint := range spec.Spec.Etcd.External.Endpoints {
		u, err := url.Parse(endpoint)
		if err != nil {
			continue // Validate has seen to it
		}
		port, err := strconv.Atoi(u.Port())
		if err != nil {
			continue // as above
		}
		ways = append(ways, doctor.MeasureWays(ctx, []cluster.Node{{Name: u.Host, Address: u.Hostname()}}, []int{port})...)
	}
	return ways
}

// reachText is how many endpoints a server reaches of an etcd that somebody else
// runs.
func reachText(e cluster.ExternalEtcdStatus) string {
	reached := 0
	for _, endpoint := range e.Endpoints {
		if endpoint.Error == "" {
			reached++
		}
	}
	return fmt.Sprintf("sees %d/%d", reached, len(e.Endpoints))
}

// membersSeen is what a node tells of members of etcd: of its own, or of those that
// somebody else runs.
func membersSeen(n cluster.NodeReport) []*cluster.EtcdStatus {
	if n.Status == nil {
		return nil
	}
	var seen []*cluster.EtcdStatus
	if n.Status.Etcd != nil {
		seen = append(seen, n.Status.Etcd)
	}
	if n.Status.External != nil {
		for i := range n.Status.External.Endpoints {
			seen = append(seen, &n.Status.External.Endpoints[i].EtcdStatus)
		}
	}
	return seen
}
