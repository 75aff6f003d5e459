package component

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// Where a node's own etcd member answers on this machine: its clients, and
// whoever asks for /readyz and /metrics, which need no certificate.
const (
	EtcdClient  = "https://127.0.0.1:2379"
	EtcdMetrics = "http://127.0.0.1:2381"
)

// EtcdData is the data directory of a node's own member.
const EtcdData = VarDir + "/etcd"

// Ports of etcd: for clients on other machines, and between members.
const (
	PortEtcdClient = 2379
	PortEtcdPeer   = 2380
)

// PeerURL is where the member of a node is found by the others.
func PeerURL(n cluster.Node) string { return httpsURL(n.Address, PortEtcdPeer) }

// ClientURL is where the member of a node answers clients.
func ClientURL(n cluster.Node) string { return httpsURL(n.Address, PortEtcdClient) }

// ClientURLs are those of all members, in the order of cluster.yaml, for who is
// on none of the machines.
func ClientURLs(spec *cluster.Spec) []string {
	if spec.EtcdExternal() {
		return slices.Clone(spec.Spec.Etcd.External.Endpoints)
	}
	var urls []string
	for _, n := range spec.EtcdNodes() {
		urls = append(urls, ClientURL(n))
	}
	return urls
}

// EtcdEndpoints are where a node's own programs find etcd: its own member alone
// if it has one, so that it is known whose answer it is, else all of them.
func EtcdEndpoints(spec *cluster.Spec, node cluster.Node) []string {
	if spec.HasMember(node) {
		return []string{EtcdClient}
	}
	return ClientURLs(spec)
}

// EtcdFiles are paths of PEM files that somebody shows to etcd, or trusts it by.
type EtcdFiles struct {
	CA, Cert, Key string
	External      bool // of an authority that is not the cluster's own
}

// EtcdFilesOf are those of a node's agent, below dir (EtcDir). Where somebody else
// runs etcd all programs of a server use the same.
func EtcdFilesOf(spec *cluster.Spec, dir string) EtcdFiles {
	if spec.EtcdExternal() {
		at := func(name string) string { return filepath.Join(dir, "pki/etcd-external", name) }
		return EtcdFiles{CA: at("ca.crt"), Cert: at("client.crt"), Key: at("client.key"), External: true}
	}
	at := func(name string) string { return filepath.Join(dir, "pki/etcd", name) }
	return EtcdFiles{CA: at("ca.crt"), Cert: at("agent-client.crt"), Key: at("agent-client.key")}
}

// apiserverEtcdFiles are those of an API server.
func apiserverEtcdFiles(spec *cluster.Spec) EtcdFiles {
	files := EtcdFilesOf(spec, EtcDir)
	if !spec.EtcdExternal() {
		files.Cert, files.Key = pki("apiserver-etcd-client.crt"), pki("apiserver-etcd-client.key")
	}
	return files
}

// InitialCluster is what a member is told when it starts for the first time,
// by the flags of the same names. Once its data directory holds a member, etcd
// ignores it; a node keeps it as it was, since a changed flag would restart
// etcd.
type InitialCluster struct {
	Members string `json:"initialCluster"`      // NAME=PEER-URL,...
	State   string `json:"initialClusterState"` // InitialNew or InitialExisting
}

// States of an initial cluster.
const (
	InitialNew      = "new"
	InitialExisting = "existing"
)

// Founders is the initial cluster of a cluster's first members: each is told
// the same, and none is first.
func Founders(spec *cluster.Spec) InitialCluster {
	var members []string
	for _, n := range spec.EtcdNodes() {
		members = append(members, n.Name+"="+PeerURL(n))
	}
	return InitialCluster{Members: strings.Join(members, ","), State: InitialNew}
}

func etcd(m Machine) Component {
	settings := m.Spec.Spec.Etcd
	client, peer := ClientURL(m.Node), PeerURL(m.Node)
	return Component{
		Name: "etcd",
		Path: m.bin("etcd"),
		Args: []string{
			"--name=" + m.Node.Name,
			"--data-dir=" + EtcdData,
			"--listen-client-urls=" + client + "," + EtcdClient,
			"--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer,
			"--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=" + m.Initial.Members,
			"--initial-cluster-state=" + m.Initial.State,
			"--initial-cluster-token=kuorum-" + m.Spec.Metadata.Name,
			"--listen-metrics-urls=" + EtcdMetrics,
			"--client-cert-auth=true",
			"--trusted-ca-file=" + pki("etcd/ca.crt"),
			"--cert-file=" + pki("etcd/server.crt"),
			"--key-file=" + pki("etcd/server.key"),
			"--peer-client-cert-auth=true",
			"--peer-trusted-ca-file=" + pki("etcd/ca.crt"),
			"--peer-cert-file=" + pki("etcd/peer.crt"),
			"--peer-key-file=" + pki("etcd/peer.key"),
			"--tls-min-version=TLS1.2",
			fmt.Sprintf("--heartbeat-interval=%d", time.Duration(settings.Heartbeat).Milliseconds()),
			fmt.Sprintf("--election-timeout=%d", time.Duration(settings.ElectionTimeout).Milliseconds()),
			fmt.Sprintf("--quota-backend-bytes=%d", settings.QuotaMiB<<20),
			// Both checks are off by default in 3.6; a member whose data
			// differs must not serve (etcd issue 13766).
			"--feature-gates=InitialCorruptCheck=true,CompactHashCheck=true",
		},
		Dirs:        []string{EtcdData},
		Ready:       httpReady(EtcdMetrics + "/readyz"),
		StopTimeout: 15 * time.Second,
		// With a small heap and one of two processors it takes 0.7 times the writes.
		Busy: true,
	}
}

func httpsURL(host string, port int) string {
	return "https://" + net.JoinHostPort(host, strconv.Itoa(port))
}
