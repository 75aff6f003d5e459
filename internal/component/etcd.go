package component

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Where a server's own etcd answers on this machine: its clients, and whoever
// asks for /readyz and /metrics, which need no certificate.
const (
	EtcdClient  = "https://127.0.0.1:2379"
	EtcdMetrics = "http://127.0.0.1:2381"
)

// etcd is started with the whole list of members and an "initial-cluster-state"
// of new: every machine is told the same and none is first. Once its data
// directory holds a member, etcd ignores both.
func etcd(m Machine) Component {
	var members []string
	for _, n := range m.Spec.Servers() {
		members = append(members, n.Name+"="+httpsURL(n.Address, 2380))
	}
	settings := m.Spec.Spec.Etcd
	client := httpsURL(m.Node.Address, 2379)
	peer := httpsURL(m.Node.Address, 2380)
	return Component{
		Name: "etcd",
		Path: m.bin("etcd"),
		Args: []string{
			"--name=" + m.Node.Name,
			"--data-dir=" + filepath.Join(VarDir, "etcd"),
			"--listen-client-urls=" + client + "," + EtcdClient,
			"--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer,
			"--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=" + strings.Join(members, ","),
			"--initial-cluster-state=new",
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
		Dirs:        []string{filepath.Join(VarDir, "etcd")},
		Ready:       httpReady(EtcdMetrics + "/readyz"),
		StopTimeout: 15 * time.Second,
	}
}

func httpsURL(host string, port int) string {
	return "https://" + net.JoinHostPort(host, strconv.Itoa(port))
}
