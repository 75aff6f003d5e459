package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
	"kuorum/internal/kubeapi"
	"kuorum/internal/pki"
)

const cniFile = "/etc/cni/net.d/10-kuorum.conflist"

// importImages gives containerd the images of the bundle, so that none has to
// be pulled. Kubelet waits for it: component.ImagesFile is part of
// containerd's readiness.
func (a *Agent) importImages(ctx context.Context) error {
	if _, err := os.Stat(component.ImagesFile); err == nil {
		return nil // an earlier agent has done it since this machine started
	}
	a.retry(ctx, "import images", func(ctx context.Context) error {
		archives, err := filepath.Glob(filepath.Join(a.options.Bundle, "images", "*.tar"))
		if err != nil {
			return err
		}
		if _, err := os.Stat(component.ContainerdSocket); err != nil {
			return err
		}
		for _, archive := range archives {
			if err := a.importImage(ctx, archive); err != nil {
				return err
			}
		}
		return host.WriteFile(component.ImagesFile, nil, 0o644)
	})
	return nil
}

func (a *Agent) importImage(ctx context.Context, archive string) error {
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ctr := filepath.Join(a.options.Bundle, "bin", "ctr")
	out, err := exec.CommandContext(limited, ctr, "--address", component.ContainerdSocket, "--namespace", "k8s.io", "images", "import", archive).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot import %s: %w: %s", filepath.Base(archive), err, bytes.TrimSpace(out))
	}
	return nil
}

// keepCNI writes the pods' network configuration as soon as flannel knows the
// node's range, for which pods wait, and puts it back within seconds when
// somebody changes it.
func (a *Agent) keepCNI(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for written := false; ; {
		err := writeCNI(component.SubnetFile, cniFile)
		if err == nil && !written {
			written = true
			tick.Reset(5 * time.Second)
			a.options.Log.Info("done", "step", "configure pod network")
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.options.Log.Warn("cannot configure the pod network", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// writeCNI writes the configuration at path for the range in subnetFile, unless
// it is there already.
func writeCNI(subnetFile, path string) error {
	data, err := os.ReadFile(subnetFile)
	if err != nil {
		return err
	}
	subnet, mtu, err := component.ParseSubnet(data)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", subnetFile, err)
	}
	want := component.CNI(subnet, mtu)
	have, err := os.ReadFile(path)
	if err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return host.WriteFile(path, want, 0o644)
}

// applyObjects gives the system's own parts their permissions, and this
// server its label, as soon as its API server answers.
func (a *Agent) applyObjects(ctx context.Context) error {
	client := a.server.api
	if err := a.supervisor.Wait(ctx, "kube-apiserver"); err != nil {
		return nil //nolint:nilerr // ctx has ended
	}
	a.retry(ctx, "apply system objects", func(ctx context.Context) error {
		for _, o := range systemObjects(a.spec.Load()) {
			if err := client.apply(ctx, o); err != nil {
				return err
			}
		}
		return nil
	})
	a.retry(ctx, "label the node", func(ctx context.Context) error {
		return client.labelServer(ctx, a.machine.Node.Name)
	})
	return nil
}

// nodesPath is where the API has its nodes.
const nodesPath = "/api/v1/nodes/"

// object is one API object that the system itself needs, with the path it
// lives at: server-side apply needs no discovery then.
type object struct {
	path string
	body string
}

// systemObjects are the permissions of the system's own parts that upstream's
// defaults do not cover. Applying them again changes nothing, so every server
// may do it at any time.
func systemObjects(spec *cluster.Spec) []object {
	const roles, bindings = "/apis/rbac.authorization.k8s.io/v1/clusterroles/", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/"
	objects := []object{
		{bindings + "kuorum:apiserver-kubelet", binding("kuorum:apiserver-kubelet", "system:kubelet-api-admin", "kube-apiserver-kubelet-client")},
		{roles + "kuorum:coredns", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"kuorum:coredns"},"rules":[
			{"apiGroups":[""],"resources":["endpoints","services","pods","namespaces"],"verbs":["list","watch"]},
			{"apiGroups":["discovery.k8s.io"],"resources":["endpointslices"],"verbs":["list","watch"]}]}`},
		{bindings + "kuorum:coredns", binding("kuorum:coredns", "kuorum:coredns", pki.UserCoreDNS)},
		{roles + "kuorum:flannel", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"kuorum:flannel"},"rules":[
			{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list","watch"]},
			{"apiGroups":[""],"resources":["nodes/status"],"verbs":["patch"]}]}`},
		{bindings + "kuorum:flannel", binding("kuorum:flannel", "kuorum:flannel", pki.UserFlannel)},
	}
	for program, e := range spec.Elections() {
		if e.ResourceNamespace == cluster.DefaultElection(program).ResourceNamespace {
			continue // upstream's own roles let both use any Lease there
		}
		name := "kuorum:leader-election:" + program
		objects = append(objects,
			object{roles + name, fmt.Sprintf(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":%q},"rules":[
			{"apiGroups":["coordination.k8s.io"],"resources":["leases"],"verbs":["create"]},
			{"apiGroups":["coordination.k8s.io"],"resources":["leases"],"resourceNames":[%q],"verbs":["get","update"]}]}`, name, e.ResourceName)},
			object{bindings + name, binding(name, name, "system:"+program)})
	}
	return objects
}

func binding(name, role, user string) string {
	return fmt.Sprintf(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":%q},
		"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":%q},
		"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":%q}]}`, name, role, user)
}

// roleLabel marks a server as kubectl and the books know it; a kubelet may
// not give itself this label (NodeRestriction).
const roleLabel = `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`

// apiClient is what an agent asks its own API server.
type apiClient struct{ *kubeapi.Client }

// apply creates or updates o by server-side apply (KEP-555), taking over
// fields that somebody else has changed: these objects are the system's.
func (c apiClient) apply(ctx context.Context, o object) error {
	return c.Patch(ctx, o.path+"?fieldManager=kuorum&force=true", kubeapi.Apply, o.body)
}

func (c apiClient) labelServer(ctx context.Context, name string) error {
	return c.Patch(ctx, nodesPath+name, kubeapi.MergePatch, roleLabel)
}

// link makes path lead to target. Something else of that name is left alone:
// it is not ours.
func link(target, path string) error {
	if old, err := os.Readlink(path); err == nil && old != target {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("cannot replace %s: %w", path, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("cannot link %s: %w", path, err)
	}
	if err := os.Symlink(target, path); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot link %s: %w", path, err)
	}
	return nil
}
