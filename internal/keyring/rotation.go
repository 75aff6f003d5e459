package keyring

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/pki"
)

// nextDir is where a server keeps the authorities that are to sign, below
// /etc/kuorum, until the old ones are forgotten.
const nextDir = "next"

// Paths of the agents' API that this package is behind.
const (
	RotationPath = "/v1/rotation"           // POST Order: the node's authorities go into a phase, and its programs follow; as a server or an administrator
	NextPath     = "/v1/rotation/next"      // POST, answers Next: the authorities to come, with their keys; as a server
	BeginPath    = "/v1/rotation/begin"     // POST: this server makes new authorities, unless it has some; as a server or an administrator
	RenewNowPath = "/v1/certificates/renew" // POST, answers Renewed: the node's certificates are made anew, whatever their age; as the node, a server or an administrator
)

// Phase is a part of a rotation. All nodes are in one before the next begins,
// so that any two trust each other at any moment.
type Phase string

// The phases of a rotation.
const (
	PhaseTrust  Phase = "trust"  // the old authorities sign, the new ones are trusted too
	PhaseSign   Phase = "sign"   // the new ones sign, the old ones are trusted still
	PhaseForget Phase = "forget" // only the new ones count
)

// Phases are all of them, in order.
func Phases() []Phase { return []Phase{PhaseTrust, PhaseSign, PhaseForget} }

// Order puts a node into a phase.
type Order struct {
	Phase Phase `json:"phase"`
	// New names the keys of the authorities to come, as pki.Set.Signers does.
	New map[string]string `json:"new"`
	// From is the address of a server that has them.
	From string `json:"from,omitempty"`
}

// Next is the files of new authorities, with their keys.
type Next struct {
	Files map[string][]byte `json:"files"`
}

// Renewed names the files that were made anew.
type Renewed struct {
	Files []string `json:"files"`
}

// Begin makes new authorities for a server, and puts them aside. Those that are
// there already stay, but for those that sign already.
func Begin(dir string, now time.Time) error {
	set, err := Keys(dir)
	if err != nil {
		return err
	}
	next, err := successor(dir, set)
	if err != nil || next != nil && !next.SameSigners(set) {
		return err
	}
	if next, err = set.Successor(now); err != nil {
		return err
	}
	return Write(dir, nextFiles(next))
}

func nextFiles(next *pki.Set) []pki.File {
	var files []pki.File
	for _, f := range next.AuthorityFiles() {
		f.Path = nextDir + "/" + strings.TrimPrefix(f.Path, "pki/")
		files = append(files, f)
	}
	return files
}

// successor is the set with the authorities that were put aside, or nil.
func successor(dir string, set *pki.Set) (*pki.Set, error) {
	aside, err := readAll(filepath.Join(dir, nextDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // none is what was found
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the authorities to come: %w", err)
	}
	return overlaid(set, aside)
}

// overlaid is set with the authorities of files.
func overlaid(set *pki.Set, files map[string][]byte) (*pki.Set, error) {
	all := set.Files()
	for _, cert := range pki.AuthorityPaths(cluster.RoleServer) {
		key := strings.TrimSuffix(cert, ".crt") + ".key"
		all[cert], all[key] = files[cert], files[key]
	}
	next, err := pki.ParseSet(all)
	if err != nil {
		return nil, fmt.Errorf("cannot read the authorities to come: %w", err)
	}
	return next, nil
}

// Successors is what this server tells others of the authorities to come: those
// that were put aside, or those that sign, when they have come.
func Successors(dir string) (Next, error) {
	set, err := Keys(dir)
	if err != nil {
		return Next{}, err
	}
	next, err := successor(dir, set)
	if err != nil {
		return Next{}, err
	}
	if next == nil {
		next = set.Alone()
	}
	files := map[string][]byte{}
	for _, f := range next.AuthorityFiles() {
		files[strings.TrimPrefix(f.Path, "pki/")] = f.Data
	}
	return Next{Files: files}, nil
}

// Has tells whether a server has the authorities of an order, aside or signing.
func Has(dir string, o Order) bool {
	set, err := Keys(dir)
	if err != nil {
		return false
	}
	next, err := successor(dir, set)
	return maps.Equal(set.Signers(), o.New) || err == nil && next != nil && maps.Equal(next.Signers(), o.New)
}

// Store puts authorities aside that another server has made, if they are those
// of the order.
func Store(dir string, next Next, o Order) error {
	set, err := Keys(dir)
	if err != nil {
		return err
	}
	fresh, err := overlaid(set, next.Files)
	if err != nil {
		return err
	}
	if !maps.Equal(fresh.Signers(), o.New) {
		return &cluster.Problem{What: "the new authorities are others than those that were ordered", Do: "kuorum certs rotate-ca", Exit: cluster.ExitRefused}
	}
	return Write(dir, nextFiles(fresh.Alone()))
}

// Change puts a server's authorities into a phase, and makes anew what they
// have signed. Its programs must then follow. It may be repeated, and repairs
// what an earlier call has left.
func Change(dir string, spec *cluster.Spec, node cluster.Node, phase Phase) error {
	set, err := Keys(dir)
	if err != nil {
		return err
	}
	next, err := successor(dir, set)
	if err != nil {
		return err
	}
	changed, err := after(set, next, phase)
	if err != nil {
		return err
	}
	changed.LeafLife = time.Duration(spec.Spec.Certificates.Life)
	have, err := Files(dir)
	if err != nil {
		return err
	}
	files, err := filesOf(changed, spec, node, have)
	if err != nil {
		return err
	}
	if err := Write(dir, files); err != nil || phase != PhaseForget {
		return err
	}
	return errors.Join(os.RemoveAll(filepath.Join(dir, nextDir)), removeSigner(dir))
}

func removeSigner(dir string) error {
	if err := os.Remove(filepath.Join(dir, "pki/cluster-signing.crt")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// after is what set becomes in a phase, when next is to take its place. A set
// that is further stays as it is.
func after(set, next *pki.Set, phase Phase) (*pki.Set, error) {
	signs := next == nil || set.SameSigners(next)
	switch {
	case phase == PhaseForget && signs:
		return set.Alone(), nil
	case phase == PhaseTrust && next != nil && !signs:
		return set.Trusting(next), nil
	case phase == PhaseSign && next != nil && !signs:
		if !bytes.Equal(set.Trusting(next).Cluster.Bundle(), set.Cluster.Bundle()) {
			return nil, refused("this server does not trust the new authorities yet, and cannot sign with them")
		}
		return next.Trusting(set), nil
	case phase == PhaseForget:
		return nil, refused("this server signs with the old authorities still, and cannot forget them")
	case next == nil:
		return nil, refused("this server has no new authorities")
	case slices.Contains(Phases(), phase):
		return set, nil
	}
	return nil, &cluster.Problem{What: fmt.Sprintf("%q is no phase of a rotation", phase), Exit: cluster.ExitUsage}
}

func refused(what string) error {
	return &cluster.Problem{What: what, Do: "kuorum certs rotate-ca    (again: it finds out how far each node is)", Exit: cluster.ExitRefused}
}

// filesOf are the files of set that a server has not: its authorities, and the
// certificates that they have not signed.
func filesOf(set *pki.Set, spec *cluster.Spec, node cluster.Node, have map[string][]byte) ([]pki.File, error) {
	have = maps.Clone(have)
	var files []pki.File
	for _, f := range set.AuthorityFiles() {
		if bytes.Equal(have[f.Path], f.Data) {
			continue
		}
		have[f.Path] = f.Data
		files = append(files, f)
	}
	leaves, err := set.Renew(spec, node, have, time.Now())
	return append(files, leaves...), err
}
