{{- define "dev.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Services have short names of their own: people type them. */}}
{{- define "dev.mlflowName" -}}mlflow{{- end -}}
{{- define "dev.s3Name" -}}s3{{- end -}}

{{- define "dev.labels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: anneal
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels that select the pods of one server; call with (dict "root" $ "component" "mlflow"). */}}
{{- define "dev.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Image of one server; call with (dict "root" $ "image" .Values.mlflow.image). */}}
{{- define "dev.image" -}}
{{- $name := .image.repository -}}
{{- if .root.Values.image.registry -}}{{- $name = printf "%s/%s" (trimSuffix "/" .root.Values.image.registry) $name -}}{{- end -}}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}

{{- define "dev.credentialsSecret" -}}
{{- default .Values.s3.credentials.secretName .Values.s3.credentials.existingSecret -}}
{{- end -}}

{{- define "dev.s3Endpoint" -}}
{{- printf "http://%s.%s.svc:%d" (include "dev.s3Name" .) .Release.Namespace (int .Values.s3.service.port) -}}
{{- end -}}

{{- define "dev.mlflowUri" -}}
{{- printf "http://%s.%s.svc:%d" (include "dev.mlflowName" .) .Release.Namespace (int .Values.mlflow.service.port) -}}
{{- end -}}
