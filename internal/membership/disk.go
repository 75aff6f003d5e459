package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
	"kuorum/internal/pki"
)

// Files of a node, below /etc/kuorum. nameFile is written last and makes the
// machine a node.
const (
	specFile    = "cluster.yaml"
	nameFile    = "node"
	initialFile = "etcd-initial-cluster.json"
	joiningFile = "joining"
)

// leftDir is where, in the data directory, what a node leaves behind goes.
const leftDir = "left"

// Directories of a node's data that are of its cluster alone.
const (
	etcdDir    = "etcd"
	historyDir = "history"
)

// ErrNoNode says that a machine is not a node of a cluster.
var ErrNoNode = errors.New("this machine is not a kuorum node")

// Disk is what makes a machine a node: all that its agent needs to start it
// again without anybody else.
type Disk struct {
	Spec    *cluster.Spec
	Name    string
	Files   []pki.File               // keys, certificates, kubeconfigs; Read leaves them out
	Initial component.InitialCluster // how its etcd starts for the first time
	Joining bool                     // the cluster has not said yet that the join is complete
}

// Write puts d below dir. A machine that loses its power meanwhile is no node,
// and Write may be called again.
func (d Disk) Write(dir string) error {
	for _, f := range d.Files {
		if err := host.WriteFile(filepath.Join(dir, f.Path), f.Data, f.Mode); err != nil {
			return err
		}
	}
	initial, err := json.MarshalIndent(d.Initial, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", initialFile, err)
	}
	if err := host.WriteFile(filepath.Join(dir, initialFile), append(initial, '\n'), 0o644); err != nil {
		return err
	}
	if err := WriteSpec(dir, d.Spec); err != nil {
		return err
	}
	if d.Joining {
		if err := host.WriteFile(filepath.Join(dir, joiningFile), nil, 0o644); err != nil {
			return err
		}
	}
	return host.WriteFile(filepath.Join(dir, nameFile), []byte(d.Name+"\n"), 0o644)
}

// WriteSpec replaces the node's cluster.yaml.
func WriteSpec(dir string, spec *cluster.Spec) error {
	text, err := spec.YAML()
	if err != nil {
		return err
	}
	return host.WriteFile(filepath.Join(dir, specFile), text, 0o644)
}

// Read is what Write has put below dir, but for Files. It returns ErrNoNode
// where nothing is.
func Read(dir string) (Disk, error) {
	name, err := os.ReadFile(filepath.Join(dir, nameFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Disk{}, ErrNoNode
	}
	if err != nil {
		return Disk{}, fmt.Errorf("cannot read the node's name: %w", err)
	}
	d := Disk{Name: strings.TrimSpace(string(name))}
	text, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return Disk{}, fmt.Errorf("cannot read the node's cluster.yaml: %w", err)
	}
	if d.Spec, err = cluster.Parse(filepath.Join(dir, specFile), text); err != nil {
		return Disk{}, err
	}
	data, err := os.ReadFile(filepath.Join(dir, initialFile))
	if err != nil {
		return Disk{}, fmt.Errorf("cannot read how the node's etcd starts: %w", err)
	}
	if err := json.Unmarshal(data, &d.Initial); err != nil {
		return Disk{}, fmt.Errorf("cannot read %s: %w", filepath.Join(dir, initialFile), err)
	}
	_, err = os.Stat(filepath.Join(dir, joiningFile))
	d.Joining = err == nil
	return d, nil
}

// Joined notes that the node's join is complete.
func Joined(dir string) error {
	if err := os.Remove(filepath.Join(dir, joiningFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Leave makes the machine no node any more: first its name goes, then its keys
// and etcd's data are moved to the directory left of data, in place of what an
// earlier node left there, and so is its account of who led. Nothing of the node may
// run.
func Leave(dir, data string) error {
	if err := os.Remove(filepath.Join(dir, nameFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot leave: %w", err)
	}
	left := filepath.Join(data, leftDir)
	if err := os.MkdirAll(left, 0o700); err != nil {
		return fmt.Errorf("cannot leave: %w", err)
	}
	if err := moveContent(dir, filepath.Join(left, "etc")); err != nil {
		return fmt.Errorf("cannot leave: %w", err)
	}
	if err := errors.Join(putAway(data, etcdDir), putAway(data, historyDir)); err != nil {
		return fmt.Errorf("cannot leave: %w", err)
	}
	return nil
}

// putAway moves a directory of data, if it is there, in place of what was put away
// before.
func putAway(data, name string) error {
	from, to := filepath.Join(data, name), filepath.Join(data, leftDir, name)
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil // an earlier attempt has done it
	}
	if err := errors.Join(os.RemoveAll(to), os.MkdirAll(filepath.Dir(to), 0o700)); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// moveContent copies, since the directories may be on different file systems,
// and dir itself may be a mount point. When dir is empty an earlier attempt has
// done it.
func moveContent(dir, to string) error {
	if entries, err := os.ReadDir(dir); err != nil || len(entries) == 0 {
		return ignoreMissing(err)
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ExternalID is the ID of a server's cluster in an etcd that somebody else runs.
func ExternalID(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "pki/etcd-external/id"))
	if err != nil {
		return "", fmt.Errorf("cannot tell this cluster from others in etcd: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
