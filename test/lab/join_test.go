//go:build lab

package lab_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// taken is how long a join that never comes to its end may leave a trace: 30 s
// without a sign of life, and what it takes to notice.
const taken = time.Minute

// TestTokensAreChecked: whatever is wrong with a token is said, and changes
// nothing.
func TestTokensAreChecked(t *testing.T) {
	l := threeServers(t)
	l.spare(t, "x1")
	expired := l.token(t, "server", "--ttl", "1s")
	revoked := l.token(t, "server")
	l.run(t, "token", "delete", revoked.ID)
	good := l.token(t, "worker")
	used := l.token(t, "worker")
	l.join(t, "x1", used)
	l.aWorkerMayLittle(t, "x1")
	l.on(t, "x1", "kuorum", "leave")
	l.awaitSpare(t, "x1")
	eventually(t, 5*time.Second, func() error {
		if out := l.run(t, "token", "list"); !strings.Contains(strings.Join(strings.Fields(out), " "), expired.ID+" server expired") {
			return fmt.Errorf("tokens are\n%s", out)
		}
		return nil
	})
	wrongPin, wrongSecret, unknown := good, good, good
	wrongPin.Pin = "sha256:" + strings.Repeat("0", 64)
	wrongSecret.Secret = good.ID + "." + strings.Repeat("a", 32)
	unknown.Secret = strings.Repeat("b", 10) + "." + strings.Repeat("a", 32)
	before := l.shape(t)
	for _, c := range []struct {
		name  string
		token joinToken
		more  []string
		code  int
		says  string
	}{
		{"expired", expired, nil, 5, "it expired at "},
		{"revoked", revoked, nil, 5, "it was revoked"},
		{"used by another", used, []string{"--name", "y1"}, 5, "it was used by x1"},
		{"another role", good, []string{"--role", "server"}, 5, "it is for a worker, not for a server"},
		{"another secret", wrongSecret, nil, 5, "its secret is wrong"},
		{"unknown", unknown, nil, 5, "it is not known here"},
		{"another authority", wrongPin, nil, 5, "it is another cluster, or somebody in between"},
		{"no token", good, []string{"--token", "rubbish"}, 2, "not a join token"},
		{"no pin", good, []string{"--pin", "rubbish"}, 2, "pin"},
		{"a name that lives", l.token(t, "server"), []string{"--name", "cp2"}, 5, "cp2 is a node of this cluster, and it is alive"},
		{"an address that is taken", good, []string{"--address", "198.18.0.12"}, 5, "name one of this machine's own addresses"},
	} {
		r := l.tryJoin(t, "x1", c.token, c.more...)
		if r.code != c.code || !strings.Contains(r.talk, c.says) {
			t.Errorf("%s: exit code %d, want %d and %q:\n%s%s", c.name, r.code, c.code, c.says, r.out, r.talk)
		}
	}
	l.unchanged(t, 5*time.Second, before)
	if l.isNode("x1") {
		t.Error("x1 has become a node")
	}
}

// aWorkerMayLittle: it has no authority's key on its disk, and may not change
// the cluster.
func (l *lab) aWorkerMayLittle(t *testing.T, machine string) {
	t.Helper()
	l.holdsNoAuthority(t, machine)
	for _, argv := range [][]string{{"token", "create"}, {"token", "list"}, {"node", "remove", "cp1"}} {
		if r := l.tryOn(t, machine, append([]string{"kuorum"}, argv...)...); r.code != 5 || !strings.Contains(r.talk, "may not do that") {
			t.Errorf("%v of a worker ends with %d: %s", argv, r.code, r.talk)
		}
	}
}

func (l *lab) holdsNoAuthority(t *testing.T, machine string) {
	t.Helper()
	secrets := map[string]string{}
	err := filepath.WalkDir(filepath.Join(tests.dir, "labs", l.name, "pki"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".crt") || strings.HasSuffix(path, ".pub") {
			return err
		}
		data, err := os.ReadFile(path)
		secrets[string(data)] = path
		return err
	})
	if err != nil || len(secrets) < 4 {
		t.Fatalf("the cluster has %d secrets (%v)", len(secrets), err)
	}
	looked := 0
	err = filepath.WalkDir(l.disk(machine, "etc/kuorum"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		looked++
		if secret, found := secrets[string(data)]; found {
			t.Errorf("%s is %s", path, secret)
		}
		return err
	})
	if err != nil || looked < 10 {
		t.Errorf("looked at %d files (%v)", looked, err)
	}
}

// TestJoinThatNeverArrives: a machine that was let in and is never heard of
// again leaves no trace.
func TestJoinThatNeverArrives(t *testing.T) {
	l := threeServers(t)
	l.spare(t, "x1")
	before := l.shape(t)
	w, end := l.underWrites(t, "never")
	defer end()
	token := l.token(t, "server")
	address := l.address(t, "x1")
	t.Run("a call and nothing else", func(t *testing.T) {
		request, err := json.Marshal(map[string]any{"token": token.Secret, "name": "x1", "role": "server", "address": address, "time": time.Now().UTC()})
		if err != nil {
			t.Fatal(err)
		}
		answer := l.on(t, "x1", "curl", "-sSk", "--max-time", "30", "-d", string(request), "https://"+token.Server+":9443/v1/join")
		if !strings.Contains(answer, `"secrets"`) {
			t.Fatalf("it was not let in: %s", answer)
		}
		if m := l.run(t, "etcdctl", "member", "list"); !strings.Contains(m, "https://"+address+":2380") {
			t.Errorf("it is no member:\n%s", m)
		}
		have := w.count()
		l.unchanged(t, taken, before)
		if err := atLeast(w, have+50); err != nil {
			t.Error(err)
		}
	})
	t.Run("another one", func(t *testing.T) {
		l.join(t, "x1", token) // the same may try again
		l.awaitMembers(t, []string{"cp1", "cp2", "cp3", "x1"})
	})
}

func (l *lab) begin(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := tests.command(append([]string{"-c", l.name}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func (l *lab) address(t *testing.T, machine string) string {
	t.Helper()
	return strings.Fields(l.on(t, machine, "hostname", "-I"))[0]
}

// TestJoinKilledAtEveryMoment cuts the power of a machine that joins: it has
// joined, or nothing is left of it.
func TestJoinKilledAtEveryMoment(t *testing.T) {
	l := threeServers(t)
	before := l.shape(t)
	w, end := l.underWrites(t, "killed")
	defer end()
	for i, wait := range []time.Duration{50, 300, 1000, 3000, 6000} {
		name := fmt.Sprintf("k%d", i)
		t.Run(fmt.Sprintf("after %d ms", wait), func(t *testing.T) {
			adding := l.begin(t, "lab", "add", name)
			eventually(t, 5*time.Second, func() error { _, err := os.Stat(l.disk(name, "var")); return err })
			<-time.After(wait * time.Millisecond)
			off := try(t, "-c", l.name, "lab", "stop", "--power", name)
			_ = adding.Wait()
			t.Logf("the power cut ends with %d, lab add with %d", off.code, adding.ProcessState.ExitCode())
			have := w.count()
			l.joinedOrNot(t, name, before)
			if try(t, "-c", l.name, "lab", "remove", name).code != 0 && l.hasMachine(t, name) {
				t.Errorf("%s cannot be removed", name)
			}
			l.unchanged(t, taken, before)
			eventually(t, 10*time.Second, func() error { return atLeast(w, have+10) })
		})
	}
	if w.gap > 5*time.Second {
		t.Errorf("no write was acknowledged for %v", w.gap)
	}
}

// joinedOrNot waits until a node votes, or the cluster is as before.
func (l *lab) joinedOrNot(t *testing.T, name string, before shape) {
	t.Helper()
	begin := time.Now()
	eventually(t, taken, func() error {
		now := l.shape(t)
		for line := range strings.Lines(now.Members) {
			if strings.Contains(line, ", "+name+", ") && strings.HasSuffix(line, ", false\n") && now.Joins == before.Joins {
				t.Logf("it votes after %v", time.Since(begin).Round(100*time.Millisecond))
				return nil
			}
		}
		if now != before {
			return fmt.Errorf("%s is neither in nor out: %+v", name, now)
		}
		t.Logf("it is out after %v", time.Since(begin).Round(100*time.Millisecond))
		return nil
	})
}

func (l *lab) hasMachine(t *testing.T, name string) bool {
	t.Helper()
	for _, m := range l.machines(t) {
		if m.Name == name {
			return true
		}
	}
	return false
}
