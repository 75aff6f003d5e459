// Package kubeconfig merges clusters into the user's own kubeconfig, as kubectl
// does: under client-go's lock, and without touching what is not ours.
package kubeconfig

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

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
	k.Path = filepath.Join(dir, ".kube", "config")
	for _, path := range filepath.SplitList(env("KUBECONFIG")) {
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
	own, err := load(path)
	if err != nil {
		return fmt.Errorf("cannot read the cluster's kubeconfig: %w", err)
	}
	cluster, user, err := own.chosen()
	if err != nil {
		return fmt.Errorf("cannot use the cluster's kubeconfig: %w", err)
	}
	return k.modify(func(config tree) {
		config.put(clusters, name, cluster)
		config.put(users, name, user)
		config.put(contexts, name, mapping(scalar("cluster"), scalar(name), scalar("user"), scalar(name)))
		if k.Switch {
			config.setCurrent(name)
		}
	})
}

// Current is the name of the file's current context, empty when it has none.
func (k File) Current() (string, error) {
	config, err := load(k.Path)
	if err != nil {
		return "", fmt.Errorf("cannot read %s: %w", k.Path, err)
	}
	return config.current(), nil
}

// Has tells whether the file has a context of that name. One that does not exist
// has none.
func (k File) Has(name string) (bool, error) {
	config, err := load(k.Path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot read %s: %w", k.Path, err)
	}
	return config.get(contexts, name) != nil, nil
}

func load(path string) (tree, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return tree{}, err
	}
	return parse(data)
}

// Remove takes the entries of that name out of the file and nothing else; a
// file that does not exist holds none.
func (k File) Remove(name string) error {
	if _, err := os.Stat(k.Path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return k.modify(func(config tree) {
		for _, list := range []string{clusters, users, contexts} {
			config.remove(list, name)
		}
		if config.current() == name {
			config.setCurrent("")
		}
	})
}

// modify reads, changes and writes the file under the same lock file that
// kubectl takes (client-go's, PATH.lock).
func (k File) modify(change func(tree)) error {
	if err := k.makeDir(); err != nil {
		return err
	}
	unlock, err := lock(k.Path)
	if err != nil {
		return err
	}
	defer unlock()
	config, err := load(k.Path)
	if errors.Is(err, os.ErrNotExist) {
		config, err = newTree(), nil
	}
	if err != nil {
		return fmt.Errorf("cannot read %s: it is left as it is: %w", k.Path, err)
	}
	before, errBefore := config.encode()
	change(config)
	after, err := config.encode()
	if err := errors.Join(errBefore, err); err != nil {
		return fmt.Errorf("cannot write %s: %w", k.Path, err)
	}
	if bytes.Equal(before, after) {
		return nil
	}
	return k.write(after)
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
