package keyring

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
	"kuorum/internal/pki"
)

// world is a cluster of two servers and a worker, as directories.
type world struct {
	spec *cluster.Spec
	root string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldApart(t, 0)
}

// newWorldApart has that many etcd nodes as well.
func newWorldApart(t *testing.T, etcdNodes int) *world {
	t.Helper()
	spec, err := cluster.NewApart("demo", etcdNodes, 2, 1)
	must(t, err)
	set, err := pki.NewSet(time.Now())
	must(t, err)
	w := &world{spec: spec, root: t.TempDir()}
	for _, n := range spec.Spec.Nodes {
		files, err := set.NodeFiles(spec, n, time.Now())
		must(t, err)
		must(t, Write(w.dir(n.Name), files))
	}
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) dir(name string) string { return filepath.Join(w.root, name) }

func (w *world) node(name string) cluster.Node {
	n, _ := w.spec.Node(name)
	return n
}

func (w *world) survey(t *testing.T) Rotation {
	t.Helper()
	var reports []cluster.NodeReport
	for _, n := range w.spec.Spec.Nodes {
		reports = append(reports, cluster.NodeReport{Name: n.Name, Status: &cluster.NodeStatus{Certificates: Certificates(w.dir(n.Name))}})
	}
	r, err := Survey(w.spec.Spec.Nodes, reports)
	must(t, err)
	return r
}

// move brings a node into a phase, as its agent does.
func (w *world) move(t *testing.T, phase Phase, n cluster.Node) {
	t.Helper()
	r := w.survey(t)
	if n.Role == cluster.RoleServer {
		must(t, w.server(n, Order{Phase: phase, New: r.New}, r.From))
		return
	}
	must(t, Write(w.dir(n.Name), w.worker(t, n, "cp1")))
}

func (w *world) server(n cluster.Node, o Order, from string) error {
	dir := w.dir(n.Name)
	if o.Phase == PhaseTrust && !Has(dir, o) {
		next, err := Successors(w.dir(from))
		if err != nil {
			return err
		}
		if err := Store(dir, next, o); err != nil {
			return err
		}
	}
	return Change(dir, w.spec, n, o.Phase)
}

// worker are the files that a server gives a node that is none now.
func (w *world) worker(t *testing.T, n cluster.Node, from string) []pki.File {
	t.Helper()
	set, err := Keys(w.dir(from))
	must(t, err)
	keys, err := pki.NewNodeKeys(n.Role)
	must(t, err)
	requests, err := keys.Requests()
	must(t, err)
	certs, err := set.SignRequests(w.spec, n, requests, time.Now())
	must(t, err)
	files, err := keys.Files(w.spec, n, certs, set.Trust())
	must(t, err)
	return files
}

// finish runs whatever the survey asks for until it asks for nothing.
func (w *world) finish(t *testing.T) (steps []string) {
	t.Helper()
	for range 20 {
		phase, waiting := w.survey(t).Next(w.spec.Spec.Nodes)
		if phase == "" {
			return steps
		}
		w.move(t, phase, waiting[0])
		steps = append(steps, string(phase)+" "+waiting[0].Name)
	}
	t.Fatalf("it does not come to its end: %q", steps)
	return nil
}

func (w *world) checkDone(t *testing.T, old map[string]string) {
	t.Helper()
	set, err := Keys(w.dir("cp1"))
	must(t, err)
	for path, key := range set.Signers() {
		if key == old[path] {
			t.Errorf("%s is the old one", path)
		}
	}
	for _, n := range w.spec.Spec.Nodes {
		for path, keys := range Trust(w.dir(n.Name)) {
			if !slices.Equal(keys, []string{set.Signers()[path]}) {
				t.Errorf("%s trusts %q in %s", n.Name, keys, path)
			}
		}
		for _, c := range Certificates(w.dir(n.Name)) {
			if c.File != "pki/registry.crt" && !slices.Contains(slices.Collect(maps.Values(set.Signers())), c.Key) {
				t.Errorf("%s has %s of another authority", n.Name, c.File)
			}
			if strings.HasPrefix(c.File, nextDir) || strings.Contains(c.File, "cluster-signing") {
				t.Errorf("%s still has %s", n.Name, c.File)
			}
		}
	}
	if r := w.survey(t); r.New != nil {
		t.Errorf("a rotation is under way still: %+v", r)
	}
}

func (w *world) begin(t *testing.T, name string) map[string]string {
	t.Helper()
	set, err := Keys(w.dir(name))
	must(t, err)
	must(t, Begin(w.dir(name), time.Now()))
	return set.Signers()
}

func TestRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if r := w.survey(t); r.New != nil {
		t.Fatalf("a fresh cluster is being rotated: %+v", r)
	}
	sa, err := os.ReadFile(w.dir("cp1") + "/pki/sa.key")
	must(t, err)
	foreign, err := pki.NewSet(time.Now())
	must(t, err)
	pair, err := foreign.AdminPair(time.Now())
	must(t, err)
	must(t, host.WriteFile(w.dir("w1")+"/pki/registry.crt", pair.Cert, 0o644)) // somebody put it there
	for range 2 {                                                              // the second one begins where the first has ended
		old := w.begin(t, "cp2")
		want := []string{
			"trust cp1", "trust cp2", "trust w1", "sign cp1", "sign cp2", "sign w1", "forget cp1", "forget cp2", "forget w1",
		}
		if diff := cmp.Diff(want, w.finish(t)); diff != "" {
			t.Fatalf("steps (-want +got):\n%s", diff)
		}
		w.checkDone(t, old)
	}
	if now, err := os.ReadFile(w.dir("cp1") + "/pki/sa.key"); err != nil || string(now) != string(sa) {
		t.Errorf("the key of service accounts is another: %v", err)
	}
	for _, path := range []string{"pki/ca.key", "next", "pki/etcd"} {
		if _, err := os.Stat(filepath.Join(w.dir("w1"), path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a worker has %s: %v", path, err)
		}
	}
}

// TestRotationWithEtcdNodes: a node that trusts other authorities than a worker,
// and none of Kubernetes, takes part in each phase.
func TestRotationWithEtcdNodes(t *testing.T) {
	t.Parallel()
	w := newWorldApart(t, 2)
	old := w.begin(t, "cp2")
	if r := w.survey(t); r.From != "cp2" {
		t.Fatalf("a cluster that is being rotated: %+v", r)
	}
	left := map[Phase][]string{}
	for range 20 {
		phase, waiting := w.survey(t).Next(serversFirst(w.spec.Spec.Nodes))
		if phase == "" {
			break
		}
		w.move(t, phase, waiting[0])
		left[phase] = append(left[phase], waiting[0].Name)
		for _, path := range []string{"pki/ca.crt", "pki/etcd/ca.key", "next"} {
			if _, err := os.Stat(filepath.Join(w.dir("e1"), path)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("an etcd node has %s: %v", path, err)
			}
		}
	}
	order := []string{"cp1", "cp2", "e1", "e2", "w1"}
	if diff := cmp.Diff(map[Phase][]string{PhaseTrust: order, PhaseSign: order, PhaseForget: order}, left); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	w.checkDone(t, old)
	for _, name := range []string{"e1", "e2"} {
		if got := slices.Sorted(maps.Keys(Trust(w.dir(name)))); !slices.Equal(got, []string{"agent-ca.crt", "etcd/ca.crt"}) {
			t.Errorf("%s trusts %q", name, got)
		}
	}
}

// TestEtcdNodeLeftBehind: what an etcd node has decides, whatever the others
// have.
func TestEtcdNodeLeftBehind(t *testing.T) {
	t.Parallel()
	w := newWorldApart(t, 1)
	w.begin(t, "cp1")
	e1 := w.node("e1")
	for _, phase := range Phases() {
		for _, n := range serversFirst(w.spec.Spec.Nodes) {
			if n.Name != e1.Name {
				w.move(t, phase, n)
			}
		}
		if next, waiting := w.survey(t).Next(w.spec.Spec.Nodes); next != phase || len(waiting) != 1 || waiting[0].Name != "e1" {
			t.Errorf("after %s of all others %q is next, of %v", phase, next, waiting)
		}
		w.move(t, phase, e1)
	}
	if next, waiting := w.survey(t).Next(w.spec.Spec.Nodes); next != "" {
		t.Errorf("%s is left, of %v", next, waiting)
	}
}

// serversFirst puts those who sign before those who ask them.
func serversFirst(nodes []cluster.Node) []cluster.Node {
	sorted := slices.Clone(nodes)
	slices.SortStableFunc(sorted, func(a, b cluster.Node) int {
		if (a.Role == cluster.RoleServer) == (b.Role == cluster.RoleServer) {
			return strings.Compare(a.Name, b.Name)
		}
		if a.Role == cluster.RoleServer {
			return -1
		}
		return 1
	})
	return sorted
}

// TestBeginTwice: new authorities that are there already are not made again.
func TestBeginTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.begin(t, "cp1")
	first := w.survey(t).New
	w.begin(t, "cp1")
	if diff := cmp.Diff(first, w.survey(t).New); diff != "" || first == nil {
		t.Errorf("others were made (-first +second):\n%s", diff)
	}
	// Two who begin at once, on two servers: one wins, whoever goes on.
	w.begin(t, "cp2")
	w.move(t, PhaseTrust, w.node("cp2"))
	won := w.survey(t).New
	w.finish(t)
	set, err := Keys(w.dir("w1") + "/../cp1")
	must(t, err)
	if diff := cmp.Diff(won, set.Signers()); diff != "" {
		t.Errorf("the other has won (-want +got):\n%s", diff)
	}
}

// TestServerThatJoinsMeanwhile: it comes with what a server has, without the
// authorities put aside, and catches up.
func TestServerThatJoinsMeanwhile(t *testing.T) {
	t.Parallel()
	base := newWorld(t)
	old := base.begin(t, "cp1")
	for {
		phase, waiting := base.survey(t).Next(base.spec.Spec.Nodes)
		if phase == "" {
			break
		}
		w := base.copied(t)
		base.move(t, phase, waiting[0])
		joining := cluster.Node{Name: "cp3", Role: cluster.RoleServer, Address: "198.18.0.13"}
		spec, err := w.spec.With(joining)
		must(t, err)
		w.spec = spec
		set, err := Keys(w.dir("cp2"))
		must(t, err)
		set, err = pki.ParseSet(set.Files())
		must(t, err)
		files, err := set.NodeFiles(spec, w.node("cp3"), time.Now())
		must(t, err)
		must(t, Write(w.dir("cp3"), files))
		w.finish(t)
		w.checkDone(t, old)
	}
}

// errPower is a power cut.
var errPower = errors.New("the power is cut")

// cutAfter writes n files and then no more.
func cutAfter(n int) writeFunc {
	return func(path string, data []byte, mode fs.FileMode) error {
		if n--; n < 0 {
			return errPower
		}
		return host.WriteFile(path, data, mode)
	}
}

// TestPowerCutAtEachFile: whichever file of a phase was the last to be written,
// the node has after its next start either all of them or none, and the rotation
// goes on from there.
func TestPowerCutAtEachFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := w.begin(t, "cp1")
	for _, phase := range Phases() {
		for {
			now, waiting := w.survey(t).Next(w.spec.Spec.Nodes)
			if now == phase {
				break
			}
			w.move(t, now, waiting[0])
		}
		cuts := 0
		for ; w.copied(t).cutInside(t, phase, cuts); cuts++ {
			if cuts > 100 {
				t.Fatalf("%s does not come to its end", phase)
			}
		}
		if cuts < 3 {
			t.Errorf("%s writes %d files", phase, cuts)
		}
	}
	w.finish(t)
	w.checkDone(t, old)
}

// copied is another world of the same.
func (w *world) copied(t *testing.T) *world {
	t.Helper()
	other := &world{spec: w.spec, root: t.TempDir()}
	must(t, os.CopyFS(other.root, os.DirFS(w.root)))
	return other
}

// cutInside has the power cut while cp1 is brought into a phase. It is false
// when there was no such moment.
func (w *world) cutInside(t *testing.T, phase Phase, cut int) bool {
	t.Helper()
	dir := w.dir("cp1")
	set, err := Keys(dir)
	must(t, err)
	next, err := successor(dir, set)
	must(t, err)
	changed, err := after(set, next, phase)
	must(t, err)
	have, err := Files(dir)
	must(t, err)
	files, err := filesOf(changed, w.spec, w.node("cp1"), have)
	must(t, err)
	err = write(dir, files, cutAfter(cut))
	if err == nil {
		return false
	}
	if !errors.Is(err, errPower) {
		t.Fatal(err)
	}
	must(t, Finish(dir))
	now, err := Files(dir)
	must(t, err)
	changes := 0
	for _, f := range files {
		if string(now[f.Path]) == string(f.Data) {
			changes++
		}
	}
	want := len(files)
	if cut == 0 {
		want = 0
	}
	if changes != want {
		t.Errorf("%s, cut after %d files: %d of %d are new", phase, cut, changes, want)
	}
	if _, err := os.Stat(filepath.Join(dir, pendingFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s, cut after %d files: keys are left in %s: %v", phase, cut, pendingFile, err)
	}
	// Next, another node is moved, or this one again: to forget also clears what
	// was put aside.
	again := cut == 0 || phase == PhaseForget
	if now, waiting := w.survey(t).Next(w.spec.Spec.Nodes); now != phase || (waiting[0].Name == "cp1") != again {
		t.Errorf("%s, cut after %d files: next is %s of %s", phase, cut, now, waiting[0].Name)
	}
	must(t, Change(dir, w.spec, w.node("cp1"), phase)) // is repeated
	if now, waiting := w.survey(t).Next(w.spec.Spec.Nodes); now != phase || waiting[0].Name != "cp2" {
		t.Errorf("%s, cut after %d files and repeated: next is %s of %s", phase, cut, now, waiting[0].Name)
	}
	return true
}

// TestAfterRefuses: a server goes through the phases in order.
func TestAfterRefuses(t *testing.T) {
	t.Parallel()
	old, err := pki.NewSet(time.Now())
	must(t, err)
	next, err := old.Successor(time.Now())
	must(t, err)
	for _, test := range []struct {
		name  string
		set   *pki.Set
		next  *pki.Set
		phase Phase
		code  int // 0: it is done
		want  *pki.Set
	}{
		{"trust", old, next, PhaseTrust, 0, old.Trusting(next)},
		{"trust again", old.Trusting(next), next, PhaseTrust, 0, old.Trusting(next)},
		{"trust, when it signs", next.Trusting(old), next, PhaseTrust, 0, next.Trusting(old)},
		{"sign", old.Trusting(next), next, PhaseSign, 0, next.Trusting(old)},
		{"sign again", next.Trusting(old), next, PhaseSign, 0, next.Trusting(old)},
		{"sign without trust", old, next, PhaseSign, cluster.ExitRefused, nil},
		{"forget", next.Trusting(old), next, PhaseForget, 0, next},
		{"forget again", next, next, PhaseForget, 0, next},
		{"forget, nothing aside", next.Trusting(old), nil, PhaseForget, 0, next},
		{"forget too early", old.Trusting(next), next, PhaseForget, cluster.ExitRefused, nil},
		{"trust whom", old, nil, PhaseTrust, cluster.ExitRefused, nil},
		{"sign by whom", old, nil, PhaseSign, cluster.ExitRefused, nil},
		{"no phase", next, next, "dance", cluster.ExitUsage, nil},
	} {
		got, err := after(test.set, test.next, test.phase)
		if test.code == 0 {
			must(t, err)
			if diff := cmp.Diff(test.want.Files(), got.Files()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", test.name, diff)
			}
			continue
		}
		problem, ok := errors.AsType[*cluster.Problem](err)
		if !ok || problem.ExitCode() != test.code {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// TestStoreChecksWhatItGets: another server cannot hand on what was not ordered.
func TestStoreChecksWhatItGets(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t), newWorld(t)
	w.begin(t, "cp1")
	other.begin(t, "cp1")
	r := w.survey(t)
	wrong, err := Successors(other.dir("cp1"))
	must(t, err)
	good, err := Successors(w.dir("cp1"))
	must(t, err)
	torn := Next{Files: maps.Clone(good.Files)}
	delete(torn.Files, "etcd/ca.key")
	for name, next := range map[string]Next{"others": wrong, "a key is missing": torn, "nothing": {}} {
		if err := Store(w.dir("cp2"), next, Order{Phase: PhaseTrust, New: r.New}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if Has(w.dir("cp2"), Order{New: r.New}) {
		t.Error("something was written")
	}
	must(t, Store(w.dir("cp2"), good, Order{Phase: PhaseTrust, New: r.New}))
	if !Has(w.dir("cp2"), Order{New: r.New}) {
		t.Error("nothing was written")
	}
	for path, data := range good.Files {
		info, err := os.Stat(filepath.Join(w.dir("cp2"), nextDir, path))
		must(t, err)
		if strings.HasSuffix(path, ".key") && info.Mode() != 0o600 {
			t.Errorf("%s has mode %o, %d bytes", path, info.Mode(), len(data))
		}
	}
}

func TestSurveyNeedsEveryNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	whole := func(name string) []cluster.CertificateStatus { return Certificates(w.dir(name)) }
	without := func(list []cluster.CertificateStatus, file string) []cluster.CertificateStatus {
		return slices.DeleteFunc(list, func(c cluster.CertificateStatus) bool { return c.File == file })
	}
	old := whole("w1")
	for i := range old {
		old[i].Key = "" // of an agent that does not tell yet
	}
	for name, w1 := range map[string]*cluster.NodeStatus{
		"silent": nil, "older": {Certificates: old}, "damaged": {Certificates: without(whole("w1"), "pki/ca.crt")},
	} {
		reports := []cluster.NodeReport{
			{Name: "cp1", Status: &cluster.NodeStatus{Certificates: whole("cp1")}}, {Name: "cp2", Status: &cluster.NodeStatus{Certificates: whole("cp2")}}, {Name: "w1", Status: w1},
		}
		_, err := Survey(w.spec.Spec.Nodes, reports)
		problem, ok := errors.AsType[*cluster.Problem](err)
		if !ok || problem.ExitCode() != cluster.ExitRefused || !strings.Contains(problem.What, "w1") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestKeys reads back a server's secrets, and misses each of them.
func TestKeys(t *testing.T) {
	t.Parallel()
	set, err := pki.NewSet(time.Now())
	must(t, err)
	dir := t.TempDir()
	for name, data := range set.Files() {
		must(t, host.WriteFile(filepath.Join(dir, "pki", name), data, 0o600))
	}
	got, err := Keys(dir)
	must(t, err)
	if got.EncryptionKey != set.EncryptionKey {
		t.Error("another key")
	}
	for name := range set.Files() {
		path := filepath.Join(dir, "pki", name)
		must(t, os.Rename(path, dir+"/away"))
		if _, err := Keys(dir); err == nil {
			t.Errorf("nobody misses %s", name)
		}
		must(t, os.Rename(dir+"/away", path))
	}
}

// TestFinishTrustsNothing: what is pending may only go below the node's own
// directory.
func TestFinishTrustsNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, Finish(dir)) // nothing is pending
	must(t, Write(dir, nil))
	for _, text := range []string{`[{"path":"../x","data":"","mode":384}]`, `[{"path":"/x","data":"","mode":384}]`, `{`, ``} {
		must(t, host.WriteFile(filepath.Join(dir, pendingFile), []byte(text), 0o600))
		if err := Finish(dir); err == nil {
			t.Errorf("%q is completed", text)
		}
	}
}

// TestCertificates lists a node's, and the authorities of a bundle in order.
func TestCertificates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.begin(t, "cp1")
	must(t, host.WriteFile(w.dir("cp1")+"/pki/junk.crt", []byte("x"), 0o644))
	w.move(t, PhaseTrust, w.node("cp1"))
	trust := Trust(w.dir("cp1"))["ca.crt"]
	var got []string
	files := map[string]bool{}
	for _, c := range Certificates(w.dir("cp1")) {
		files[c.File] = true
		if c.File == "pki/ca.crt" {
			got = append(got, c.Key)
		}
		if c.File == "pki/apiserver.crt" && (c.By != "kubernetes" || c.Key != trust[0] || !c.Renew.After(c.From) || !c.Until.After(c.Renew)) {
			t.Errorf("the API server's: %+v", c)
		}
	}
	if len(trust) != 2 || !slices.Equal(got, trust) {
		t.Errorf("the authorities are %q, listed are %q", trust, got)
	}
	for _, name := range []string{"next/ca.crt", "admin.conf", "pki/clients/kubelet.pem"} {
		if !files[name] {
			t.Errorf("%s is not listed", name)
		}
	}
	if files["pki/junk.crt"] || files["kubelet.conf"] {
		t.Error(fmt.Sprint("listed are ", files))
	}
}
