package component

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// TestPortsAreThoseOfThePrograms: every address that a program is told to
// listen on is listed, and nothing is listed that nobody listens on.
func TestPortsAreThoseOfThePrograms(t *testing.T) {
	for _, name := range []string{"cp1", "w1"} {
		m := testMachine(t, name)
		told := map[string]bool{}
		address := regexp.MustCompile(`(127\.0\.0\.1|` + regexp.QuoteMeta(m.Node.Address) + `):(\d+)`)
		for _, c := range For(m) {
			text := strings.Join(c.Args, "\n")
			for _, f := range c.Files {
				text += "\n" + string(f.Data)
			}
			for _, found := range address.FindAllString(text, -1) {
				told[found] = true
			}
		}
		listed := map[string]bool{}
		for _, p := range Ports(m.Spec, m.Node) {
			listed[p.Address.String()] = true
		}
		for found := range told {
			if !listed[found] && !strings.HasSuffix(found, ":6444") { // which endpoint names, also on a worker
				t.Errorf("%s: a program is told of %s, which Ports does not list", name, found)
			}
		}
		// Those whose address and port are told apart, or not at all.
		apart := []string{
			"10250", "6444", "9443", "8472", "53", "10257", "10259", "10248",
		}
		for found := range listed {
			_, port, _ := strings.Cut(found, ":")
			if !told[found] && !slices.Contains(apart, port) {
				t.Errorf("%s: Ports lists %s, which no program is told of", name, found)
			}
		}
	}
}

func TestPorts(t *testing.T) {
	spec, err := cluster.New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	text := func(node cluster.Node) string {
		var all []string
		for _, p := range Ports(spec, node) {
			all = append(all, fmt.Sprintf("%s/%s/%s", p.Network, p.Address, p.Program))
		}
		return strings.Join(all, " ")
	}
	server := text(cluster.Node{Role: cluster.RoleServer})
	for _, want := range []string{"tcp/0.0.0.0:2380/etcd", "tcp/127.0.0.1:10259/kube-scheduler", "udp/169.254.20.10:53/coredns", "udp/0.0.0.0:8472/VXLAN", "tcp/0.0.0.0:9443/agent"} {
		if !strings.Contains(server, want) {
			t.Errorf("a server has no %s: %s", want, server)
		}
	}
	spec.Spec.Network.Backend = "host-gw"
	worker := text(cluster.Node{Role: cluster.RoleWorker, Address: "198.18.0.101"})
	for _, never := range []string{"etcd", "kube-apiserver", "scheduler", "VXLAN", "0.0.0.0"} {
		if strings.Contains(strings.ReplaceAll(worker, netip.MustParseAddr("127.0.0.1").String(), ""), never) {
			t.Errorf("a worker without VXLAN has %s: %s", never, worker)
		}
	}
}

// TestSharedFilesAndLogsAreAll: whoever adds a file or log decides here whether
// it may be shown.
func TestSharedFilesAndLogsAreAll(t *testing.T) {
	files, logs := map[string]bool{}, map[string]bool{AgentLog: true}
	for _, c := range slices.Concat(For(testMachine(t, "cp1")), For(balancerMachine(t, "lb1"))) {
		logs[c.Name+".log"] = true
		for _, f := range c.Files {
			if filepath.Dir(f.Path) == path.Join(EtcDir, "components") {
				files[filepath.Base(f.Path)] = true
			}
		}
	}
	if diff := cmp.Diff(sorted(files), SharedFiles()); diff != "" {
		t.Errorf("files that components render, and those that are shared:\n%s", diff)
	}
	if diff := cmp.Diff(sorted(logs), sorted(set(Logs()))); diff != "" {
		t.Errorf("logs, and those that are shared:\n%s", diff)
	}
}

func set(names []string) map[string]bool {
	all := map[string]bool{}
	for _, n := range names {
		all[n] = true
	}
	return all
}

func sorted(names map[string]bool) []string {
	var list []string
	for n := range names {
		list = append(list, n)
	}
	slices.Sort(list)
	return list
}
