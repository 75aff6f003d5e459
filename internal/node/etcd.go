package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/etcd"
	"kuorum/internal/kubeapi"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
)

// member is the etcd member of a node that has one. It is asked alone, so that
// the answer does not depend on other machines.
type member struct {
	etcd    *etcd.Client
	metrics *etcd.MetricsWatch
	timers  cluster.Etcd // that it was started with
}

func newMember(timers cluster.Etcd) (*member, error) {
	client, err := dialEtcd(component.EtcdClient)
	if err != nil {
		return nil, err
	}
	return &member{etcd: client, metrics: etcd.WatchMetrics(component.EtcdMetrics + "/metrics"), timers: timers}, nil
}

func (m *member) status(ctx context.Context) *cluster.EtcdStatus {
	var status cluster.EtcdStatus
	var recent etcd.Recent
	var both sync.WaitGroup
	both.Go(func() { status = m.etcd.Status(ctx) })
	both.Go(func() { recent = m.metrics.Recent(ctx) })
	both.Wait()
	status.Heartbeat, status.ElectionTimeout = m.timers.Heartbeat, m.timers.ElectionTimeout
	if status.Error == "" {
		status.FsyncP99, status.PeerRTT = cluster.Duration(recent.FsyncP99), cluster.Duration(recent.PeerRTT)
	}
	return &status
}

// server is what only a server's agent asks: etcd, which is its own member if
// it has one, and its own API server.
type server struct {
	etcd  *etcd.Client
	apart bool // etcd is on other machines, and etcd asks all of its members
	api   apiClient

	address string // the node's own
	members *membership.Service
	waited  int // see correctMembers
}

// newServer uses the node's own member, which stays the caller's; nil: it has
// none.
func newServer(m component.Machine, options Options, agents *agent.Client, own *member) (*server, error) {
	s := &server{apart: own == nil, address: m.Node.Address}
	var err error
	if own != nil {
		s.etcd = own.etcd
	} else if s.etcd, err = dialEtcd(component.EtcdEndpoints(m.Spec, m.Node)...); err != nil {
		return nil, err
	}
	api, err := kubeapi.New(filepath.Join(component.EtcDir, "agent.conf"), askAPI)
	if err != nil {
		return nil, errors.Join(err, s.etcd.Close())
	}
	s.api = apiClient{api}
	s.members = newMembership(m, options, s, agents)
	return s, nil
}

func dialEtcd(endpoints ...string) (*etcd.Client, error) {
	config, err := etcdTLS(filepath.Join(component.EtcDir, "pki/etcd"))
	if err != nil {
		return nil, fmt.Errorf("cannot talk to etcd: %w", err)
	}
	return etcd.Dial(etcd.Config{Endpoints: endpoints, TLS: config})
}

// etcdTLS reads the client certificate again for each connection, so that a
// renewed one is used without a restart.
func etcdTLS(dir string) (*tls.Config, error) {
	var files [3][]byte
	paths := []string{filepath.Join(dir, "ca.crt"), filepath.Join(dir, "agent-client.crt"), filepath.Join(dir, "agent-client.key")}
	for i, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files[i] = data
	}
	config, err := pki.EtcdClientTLS(files[0], pki.Pair{Cert: files[1], Key: files[2]})
	if err != nil {
		return nil, err
	}
	membership.Reread(config, paths[1], paths[2])
	return config, nil
}
