package cli

import (
	"context"
	"encoding/json"
	"path"
	"strings"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/doctor"
	"kuorum/internal/lab"
)

// writeSupport packs what helps somebody else, and nothing that would help
// them to more than that.
func (a *app) writeSupport(ctx context.Context, file string, p patient, d doctorDocument) error {
	documents := []doctor.Document{jsonDocument("doctor.json", d), jsonDocument("version.json", a.versions())}
	if p.ask != nil {
		s, err := review(ctx, *p.ask)
		if err != nil {
			documents = append(documents, doctor.Document{Name: "status.txt", Data: []byte(err.Error() + "\n")})
		} else {
			documents = append(documents, jsonDocument("status.json", statusDocument{APIVersion: cluster.APIVersion, Kind: "ClusterStatus", Status: s}))
		}
	}
	n, err := doctor.WriteSupport(file, documents, p.sources(), time.Now())
	if err != nil {
		return err
	}
	a.talk("%s has %d files: look before you pass it on\n", file, n)
	return nil
}

// jsonDocument cannot fail: what is printed as JSON elsewhere can be here.
func jsonDocument(name string, value any) doctor.Document {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		data = []byte(err.Error())
	}
	return doctor.Document{Name: name, Data: append(data, '\n')}
}

// sources are the files that may leave this machine.
func (p patient) sources() []doctor.Source {
	list := []doctor.Source{{Name: "host", Root: "/", Files: []string{
		"etc/os-release", "proc/cgroups", "proc/filesystems", "proc/loadavg", "proc/meminfo", "proc/modules", "proc/pressure/*",
		"proc/self/mountinfo", "proc/swaps", "proc/uptime", "proc/version",
	}}}
	switch {
	case p.as == asNode:
		records := path.Join(component.RunDir, "components/*.json")
		list = append(list, doctor.Source{Name: "nodes/" + p.self.Name, Root: "/", Files: append(nodeFiles(), below(records))})
	case p.lab != nil:
		list = append(list, labSources(p.lab)...)
	}
	return list
}

// labSources are the lab's own files and what is on the machines' disks: their
// records are in memory, and stay there.
func labSources(l *lab.Lab) []doctor.Source {
	list := []doctor.Source{{Name: "lab", Root: l.Dir(), Files: []string{"cluster.yaml", "state.json", "lab.log"}}}
	for _, n := range l.Nodes().Spec.Nodes {
		list = append(list, doctor.Source{Name: "nodes/" + n.Name, Root: l.Disk(n.Name), Files: append(nodeFiles(), "console.log")})
	}
	return list
}

// nodeFiles are the files of a node that hold no secret, by path below its /.
func nodeFiles() []string {
	var files []string
	for _, name := range []string{"cluster.yaml", "node", "etcd-initial-cluster.json"} {
		files = append(files, below(path.Join(component.EtcDir, name)))
	}
	for _, name := range component.SharedFiles() {
		files = append(files, below(path.Join(component.EtcDir, "components", name)))
	}
	for _, name := range component.Logs() {
		files = append(files, below(path.Join(component.LogDir, name)))
	}
	return files
}

func below(path string) string { return strings.TrimPrefix(path, "/") }
