package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"kuorum/internal/host"
	"kuorum/internal/kubeconfig"
	"kuorum/internal/step"
)

// Down is `kuorum down`: a lab stopped, and removed unless Keep is set.
type Down struct {
	Store          Store
	Name           string
	Keep           bool
	KubeconfigFile kubeconfig.File

	busy *os.File
}

// Steps is the whole procedure. Each step may be run again, also over what an
// interrupted up or down left.
func (d *Down) Steps() []step.Step {
	if d.Keep {
		return []step.Step{
			{Name: "stop lab " + d.Name, Do: d.stop},
			{Name: "end its process", Do: d.end},
			{Name: "remove its control groups", Do: d.removeCgroups},
		}
	}
	return []step.Step{
		{Name: "end lab " + d.Name, Do: d.end},
		{Name: "remove its control groups", Do: d.removeCgroups},
		{Name: "remove it from the kubeconfig", Do: d.unmerge},
		{Name: "remove its files", Do: d.removeFiles},
	}
}

// Close lets another up or down of the lab go on.
func (d *Down) Close() error {
	if d.busy == nil {
		return nil
	}
	return d.busy.Close()
}

func (d *Down) take() error {
	if d.busy != nil {
		return nil
	}
	busy, err := lockVerb(d.Store.lab(d.Name))
	d.busy = busy
	return err
}

// stop shuts every machine down cleanly. A lab that does not run is stopped.
func (d *Down) stop(ctx context.Context) error {
	if err := d.take(); err != nil {
		return err
	}
	l := d.Store.lab(d.Name)
	if _, ok := l.Running(); !ok {
		return nil
	}
	if err := l.call(ctx, "POST", "/v1/stop", nil); err != nil {
		return err
	}
	return l.waitGone(ctx)
}

// end kills the lab process; its machines end with it.
func (d *Down) end(ctx context.Context) error {
	if err := d.take(); err != nil {
		return err
	}
	l := d.Store.lab(d.Name)
	pid, ok := l.Running()
	if !ok {
		return nil
	}
	if pid > 0 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("cannot end process %d of lab %s: %w", pid, d.Name, err)
		}
	}
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return l.waitGone(limited)
}

// removeCgroups ends whatever is left of the machines and removes their
// groups, the one that all labs share when it is empty.
func (d *Down) removeCgroups(ctx context.Context) error {
	hierarchies, err := host.MountedHierarchies()
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := host.NewCgroup(hierarchies, d.Store.lab(d.Name).cgroupPath()).Remove(limited); err != nil {
		return err
	}
	host.NewCgroup(hierarchies, "/kuorum").RemoveIfEmpty()
	return nil
}

func (d *Down) unmerge(context.Context) error {
	if d.KubeconfigFile.Path == "" {
		return nil
	}
	return d.KubeconfigFile.Remove(contextName(d.Name))
}

// removeFiles removes the lab's directory. state.json goes first, so that an
// interrupted removal leaves no lab that looks whole; directories that held
// all labs go when they are empty, bundles stay for the next `up`.
func (d *Down) removeFiles(context.Context) error {
	l := d.Store.lab(d.Name)
	if err := os.Remove(l.path("state.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove lab %s: %w", d.Name, err)
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("cannot remove lab %s: %w", d.Name, err)
	}
	if err := os.Remove(l.dir + verbLock); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the lock of lab %s: %w", d.Name, err)
	}
	_ = os.Remove(d.Store.labs()) // only when it is empty
	return nil
}
