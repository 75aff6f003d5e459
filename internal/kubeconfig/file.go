// Package kubeconfig merges clusters into the user's own kubeconfig, as kubectl
// does: under client-go's lock, and without touching what is not ours.
package kubeconfig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"kuorum/internal/host"
)

// File is the user's own file that clusters are merged into.
type File struct {
	Path string
	// UID and GID own the file when it is not root's: the user who called
	// sudo. -1 leaves the owner alone.
	UID, GID int
	// Switch makes a merged cluster the current context.
	Switch bool
}

// Find chooses the file as kubectl does: the first existing one in
// $KUBECONFIG, else its last, else ~/.kube/config; under sudo the home of the
// user who called it.
func Find(env func(string) string, home func(user string) (string, error)) (File, error) {
	k := File{UID: -1, GID: -1, Switch: true}
	dir := env("HOME")
	if user := env("SUDO_USER"); user != "" && user != "root" {
		var err error
		if dir, err = home(user); err != nil {
			return k, fmt.Errorf("cannot find the home of %s: %w", user, err)
		}
		uid, errUID := strconv.Atoi(env("SUDO_UID"))
		gid, errGID := strconv.Atoi(env("SUDO_GID"))
		if err := errors.Join(errUID, errGID); err != nil {
			return k, fmt.Errorf("cannot tell who called sudo: %w", err)
		}
		k.UID, k.GID = uid, gid
	}
	k.Path = filepath.Join(dir, clientcmd.RecommendedHomeDir, clientcmd.RecommendedFileName)
	for _, path := range filepath.SplitList(env(clientcmd.RecommendedConfigPathEnvVar)) {
		if path == "" {
			continue
		}
		k.Path = path
		if _, err := os.Stat(path); err == nil {
			break
		}
	}
	return k, nil
}

// Merge puts the current cluster, user and context of the kubeconfig at path
// into the file under one name, in place of older ones of that name, and leaves
// everything else as it is.
func (k File) Merge(path, name string) error {
	own, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return fmt.Errorf("cannot read the cluster's kubeconfig: %w", err)
	}
	return k.modify(func(config *api.Config) {
		config.Clusters[name] = own.Clusters[own.Contexts[own.CurrentContext].Cluster]
		config.AuthInfos[name] = own.AuthInfos[own.Contexts[own.CurrentContext].AuthInfo]
		config.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name}
		if k.Switch {
			config.CurrentContext = name
		}
	})
}

// Remove takes the entries of that name out of the file and nothing else; a
// file that does not exist holds none.
func (k File) Remove(name string) error {
	if _, err := os.Stat(k.Path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return k.modify(func(config *api.Config) {
		delete(config.Clusters, name)
		delete(config.AuthInfos, name)
		delete(config.Contexts, name)
		if config.CurrentContext == name {
			config.CurrentContext = ""
		}
	})
}

// modify reads, changes and writes the file under the same lock file that
// kubectl takes (client-go's, PATH.lock).
func (k File) modify(change func(*api.Config)) error {
	if err := k.makeDir(); err != nil {
		return err
	}
	unlock, err := lock(k.Path)
	if err != nil {
		return err
	}
	defer unlock()
	config, err := clientcmd.LoadFromFile(k.Path)
	if errors.Is(err, os.ErrNotExist) {
		config, err = api.NewConfig(), nil
	}
	if err != nil {
		return fmt.Errorf("cannot read %s: it is left as it is: %w", k.Path, err)
	}
	before := config.DeepCopy()
	change(config)
	if equalConfigs(before, config) {
		return nil
	}
	data, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", k.Path, err)
	}
	return k.write(data)
}

func (k File) makeDir() error {
	dir := filepath.Dir(k.Path)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make %s: %w", dir, err)
	}
	return k.own(dir)
}

func (k File) own(path string) error {
	if k.UID < 0 {
		return nil
	}
	if err := os.Chown(path, k.UID, k.GID); err != nil {
		return fmt.Errorf("cannot give %s to its user: %w", path, err)
	}
	return nil
}

func (k File) write(data []byte) error {
	target, err := filepath.EvalSymlinks(k.Path)
	if err != nil {
		target = k.Path // it does not exist yet
	}
	owner := k
	if info, err := os.Stat(target); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			owner.UID, owner.GID = int(stat.Uid), int(stat.Gid)
		}
	}
	if err := host.WriteFile(target, data, 0o600); err != nil {
		return err
	}
	return owner.own(target)
}

func equalConfigs(a, b *api.Config) bool {
	left, errLeft := clientcmd.Write(*a)
	right, errRight := clientcmd.Write(*b)
	return errLeft == nil && errRight == nil && string(left) == string(right)
}
