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

	"kuorum/internal/component"
	"kuorum/internal/host"
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
		for _, o := range systemObjects() {
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
